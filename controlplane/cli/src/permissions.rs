//! `basalt permissions`: the table of methods and roles of this program.

use crate::options::Options;
use crate::{Failure, output};
use basalt_security::Role;
use basalt_security::permissions::{Access, Rule, TABLE, markdown};
use serde_json::{Value, json};

pub(crate) fn run(options: &Options, as_markdown: bool) -> Result<(), Failure> {
    if as_markdown {
        return output::print(markdown().as_bytes());
    }
    let roles = |rule: &Rule| {
        let allowed = Role::ALL.into_iter().filter(|role| rule.allows_role(*role));
        allowed.map(Role::as_str).collect::<Vec<_>>()
    };
    let document = |rule: &Rule| -> Value {
        json!({
            "method": rule.method,
            "permission": rule.permission,
            "roles": roles(rule),
            "open": rule.access == Access::Open,
            "join_token": rule.access == Access::Joining,
            "recorded": rule.recorded.word(),
        })
    };
    let documents: Vec<Value> = TABLE.iter().map(document).collect();
    output::write(options.output, &json!({ "permissions": documents }), || {
        let row = |rule: &Rule| {
            let mut row = vec![rule.method.to_owned(), rule.permission.to_owned()];
            let word = |allowed: bool| if allowed { "yes" } else { "-" }.to_owned();
            row.extend(Role::ALL.map(|role| word(rule.allows_role(role))));
            row.push(rule.beyond_roles().to_owned());
            row
        };
        let rows: Vec<_> = TABLE.iter().map(row).collect();
        let head = ["METHOD", "PERMISSION", "VIEWER", "OPERATOR", "ADMIN", "NODE", "CSI", "OTHERS"];
        output::table(&head, &rows)
    })
}
