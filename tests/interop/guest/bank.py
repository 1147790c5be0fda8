"""A bank of accounts in SQLite: its books must balance after every power cut.

First it opens the database as the last power cut left it: the integrity check must hold, the sum of
all accounts must be what it was, and no transfer of which the host was told may be missing. Then it
commits transfers, and tells the host of each by a line with its number, until the power is cut; in
round 0 it ends after the check.
Usage: bank.py FOLDER ROUND HOST PORT
"""
import os
import random
import socket
import sqlite3
import sys

ACCOUNTS = 200
SUM = ACCOUNTS * 1000


def open_bank(path, round_):
    # In autocommit: transactions begin and end where they are written.
    bank = sqlite3.connect(path, isolation_level=None)
    # FULL would let the last commit come undone: it does not sync the removal of the rollback journal.
    bank.execute("PRAGMA synchronous=EXTRA")
    # Both ways in which SQLite makes a commit durable have their turn.
    mode = bank.execute(f"PRAGMA journal_mode={'WAL' if round_ % 2 else 'DELETE'}").fetchone()[0]
    print(f"[bank] round {round_}, journal {mode}", flush=True)
    return bank


def make(bank):
    bank.execute("BEGIN")
    bank.execute("CREATE TABLE account (id INTEGER PRIMARY KEY, amount INTEGER, note BLOB)")
    bank.execute("CREATE TABLE transfer (number INTEGER PRIMARY KEY, amount INTEGER)")
    bank.execute("CREATE INDEX by_amount ON account (amount)")
    for account in range(ACCOUNTS):
        bank.execute("INSERT INTO account VALUES (?, 1000, zeroblob(10))", (account,))
    bank.execute("COMMIT")


def check(bank, told):
    verdict = bank.execute("PRAGMA integrity_check").fetchall()
    assert verdict == [("ok",)], verdict
    total, = bank.execute("SELECT sum(amount) FROM account").fetchone()
    assert total == SUM, f"the accounts hold {total}, not {SUM}"
    count, last = bank.execute("SELECT count(*), coalesce(max(number), 0) FROM transfer").fetchone()
    assert count == last, f"{count} transfers, the last has number {last}"
    assert last >= told, f"the host was told of transfer {told}, the last is {last}"
    print(f"[bank] it balances after {last} transfers, {told} of them told", flush=True)
    return last


def transfer(bank, number):
    source, target = random.sample(range(ACCOUNTS), 2)
    amount = random.randint(1, 100)
    note = os.urandom(random.randint(0, 2000))
    bank.execute("BEGIN IMMEDIATE")
    bank.execute("UPDATE account SET amount = amount - ?, note = ? WHERE id = ?", (amount, note, source))
    bank.execute("UPDATE account SET amount = amount + ? WHERE id = ?", (amount, target))
    bank.execute("INSERT INTO transfer VALUES (?, ?)", (number, amount))
    bank.execute("COMMIT")


def main():
    folder, round_, host, port = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    with socket.create_connection((host, port)) as told_to:
        told_to.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        told = int(told_to.makefile().readline())
        bank = open_bank(os.path.join(folder, "bank.db"), round_)
        if round_ == 1:
            make(bank)
        number = check(bank, told)
        while round_ != 0:
            number += 1
            transfer(bank, number)
            told_to.sendall(b"%d\n" % number)
        bank.close()


if __name__ == "__main__":
    main()
