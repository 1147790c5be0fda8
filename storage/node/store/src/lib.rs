//! What a node remembers beside its device: which cluster it belongs to, which of its nodes it is,
//! who the others are, which replicas it holds, and how often it was started; and the shard's index
//! checkpoints, as records whose meaning is not known here. It stands in RocksDB, on a helper thread.
//! The first part is written only at bootstrap, at a start, and when an address changes or a replica
//! comes or goes, the second by volume of log written. Beside both stands the control plane's state of the metadata
//! group, in pieces.
//!
//! Every change is one synced write batch: it took place whole, or not at all.

mod checkpoint;
mod metadata;
mod record;

pub use checkpoint::{AddRecord, CheckpointBatch, Pages, Records};
pub use record::{
    BeginningRecord, Identity, MemberRecord, ReplicaRecord, ScrubPlaceRecord, ScrubRecord,
};

use record::Boots;
use rocksdb::{DBWithThreadMode, LogLevel, MultiThreaded, Options, WriteBatch, WriteOptions};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock, mpsc};
use std::thread::JoinHandle;

const IDENTITY: &[u8] = b"identity";
const BOOTS: &[u8] = b"boots";
const SCRUB: &[u8] = b"scrub";
const BEGINNING: &[u8] = b"beginning";

/// Why the store can not be used.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// RocksDB failed.
    #[error("the node's store at {path}: {reason}")]
    Database {
        /// Where.
        path: PathBuf,
        /// What it said.
        reason: String,
    },
    /// A record can not be understood.
    #[error(
        "the node's store at {path}: the record '{record}' is damaged or of another version: {reason}"
    )]
    Record {
        /// Where.
        path: PathBuf,
        /// Which.
        record: String,
        /// What is wrong.
        reason: String,
    },
    /// Another identity is stored already.
    #[error("the node already is node {node} of cluster {cluster:016x}")]
    Belongs {
        /// The cluster.
        cluster: u64,
        /// The node's id in it.
        node: u32,
    },
    /// The node is no member of a cluster, so that it can hold no replica.
    #[error("the node belongs to no cluster")]
    NoMember,
    /// The helper thread is gone.
    #[error("the node's store is closed")]
    Closed,
}

/// Column families come and go while another thread reads.
type DB = DBWithThreadMode<MultiThreaded>;
type Reply<T> = mpsc::Sender<Result<T, StoreError>>;

enum Call {
    Identity(Reply<Option<Identity>>),
    Adopt(Identity, Reply<()>),
    Update(Identity, Reply<()>),
    Begin(Reply<()>),
    Hold(ReplicaRecord, Reply<ReplicaRecord>),
    Release(u32, Reply<()>),
    Boot(Reply<u64>),
    Opened(Reply<bool>),
    MarkOpened(Reply<()>),
    Scrubbed(Reply<Option<ScrubRecord>>),
    Beginning(Reply<Option<BeginningRecord>>),
    BeginAnew(Identity, BeginningRecord, Reply<()>),
    NoteScrub(ScrubRecord, Reply<()>),
    Save(checkpoint::Fill, Reply<()>),
    Replace(checkpoint::Carry, checkpoint::Fill, Reply<Vec<usize>>),
    Verify { from: Vec<u8>, bytes: u64, pieces: checkpoint::Pieces, reply: Reply<()> },
    Scan(checkpoint::Pieces, Reply<()>),
    Close,
}

/// The store of one node. Calls block until they are done; they belong on a helper thread of the
/// caller's, never on a reactor.
pub struct Store {
    calls: mpsc::Sender<Call>,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// For those who read without waiting for what was asked for before; nothing once it is closed.
    database: Arc<RwLock<Option<Arc<Database>>>>,
    /// Held while a state of the metadata group is written.
    metadata: Mutex<()>,
}

impl Store {
    /// Opens the store in the directory `path`, which is created if it does not exist.
    ///
    /// # Errors
    /// If RocksDB can not open it: no permission, another process has it, it is damaged.
    pub fn open(path: &Path) -> Result<Store, StoreError> {
        let (calls, incoming) = mpsc::channel();
        let (opened, outcome) = mpsc::channel();
        let path = path.to_owned();
        let thread = std::thread::Builder::new()
            .name("store".to_owned())
            .spawn({
                let path = path.clone();
                move || run(&path, &opened, &incoming)
            })
            .map_err(|e| StoreError::Database { path, reason: e.to_string() })?;
        let database = outcome.recv().map_err(|_| StoreError::Closed)??;
        let database = Arc::new(RwLock::new(Some(database)));
        Ok(Store { calls, thread: Mutex::new(Some(thread)), database, metadata: Mutex::new(()) })
    }

    /// Who the node is, nothing before bootstrap.
    ///
    /// # Errors
    /// If the record can not be read or understood.
    pub fn identity(&self) -> Result<Option<Identity>, StoreError> {
        self.call(Call::Identity)
    }

    /// Makes the node a member of a cluster. For one that is this member already it is an update.
    ///
    /// # Errors
    /// [`StoreError::Belongs`] if it is another one, or of another cluster; it keeps that.
    pub fn adopt(&self, identity: Identity) -> Result<(), StoreError> {
        self.call(|reply| Call::Adopt(identity, reply))
    }

    /// Replaces what may change: the members and their addresses. What the node holds, and whether it has
    /// begun, stays as it is stored.
    ///
    /// # Errors
    /// [`StoreError::Belongs`] if cluster or node id differ from the stored ones.
    pub fn update(&self, identity: Identity) -> Result<(), StoreError> {
        self.call(|reply| Call::Update(identity, reply))
    }

    /// Remembers that the node begins as the member that it is, before it does: from then on it may have
    /// promised something that must not be forgotten.
    ///
    /// # Errors
    /// If it can not be written, or the node is no member of a cluster.
    pub fn begin(&self) -> Result<(), StoreError> {
        self.call(Call::Begin)
    }

    /// Remembers that a group has a replica here, and gives what is remembered: of one that is held
    /// already, its first record.
    ///
    /// # Errors
    /// If it can not be written, or the node is no member of a cluster.
    pub fn hold(&self, replica: ReplicaRecord) -> Result<ReplicaRecord, StoreError> {
        self.call(|reply| Call::Hold(replica, reply))
    }

    /// Forgets the replica of a group, if there is one.
    ///
    /// # Errors
    /// If it can not be written, or the node is no member of a cluster.
    pub fn release(&self, group: u32) -> Result<(), StoreError> {
        self.call(|reply| Call::Release(group, reply))
    }

    /// Counts one more start of the node, and says how many there were with it.
    ///
    /// # Errors
    /// If it can not be written.
    pub fn boot(&self) -> Result<u64, StoreError> {
        self.call(Call::Boot)
    }

    /// Whether the node's device was opened before: a blank one in its place would have lost what
    /// the node promised, and must not be taken for a new one.
    ///
    /// # Errors
    /// If it can not be read.
    pub fn opened(&self) -> Result<bool, StoreError> {
        self.call(Call::Opened)
    }

    /// Remembers that the device was opened.
    ///
    /// # Errors
    /// If it can not be written.
    pub fn mark_opened(&self) -> Result<(), StoreError> {
        self.call(Call::MarkOpened)
    }

    /// Where the metadata group began anew; nothing if it never did.
    ///
    /// # Errors
    /// If it can not be read.
    pub fn beginning(&self) -> Result<Option<BeginningRecord>, StoreError> {
        self.call(Call::Beginning)
    }

    /// Makes the node the member that an identity says, with the device that it has, in a metadata group that begins
    /// anew.
    ///
    /// # Errors
    /// If it can not be written.
    pub fn begin_anew(
        &self,
        identity: Identity,
        beginning: BeginningRecord,
    ) -> Result<(), StoreError> {
        self.call(|reply| Call::BeginAnew(identity, beginning, reply))
    }

    /// How far the node had come with looking for damage; nothing if that was never noted.
    ///
    /// # Errors
    /// If it can not be read.
    pub fn scrubbed(&self) -> Result<Option<ScrubRecord>, StoreError> {
        self.call(Call::Scrubbed)
    }

    /// Notes how far it has come.
    ///
    /// # Errors
    /// If it can not be written.
    pub fn note_scrub(&self, record: ScrubRecord) -> Result<(), StoreError> {
        self.call(|reply| Call::NoteScrub(record, reply))
    }

    /// Ends what was asked for before, closes the database and waits for its thread; whoever calls
    /// later hears that it is closed. A process that ends without having closed its databases may
    /// take away, on one thread, what RocksDB still uses on another.
    pub fn close(&self) {
        // Waits for those who read.
        drop(self.database.write().unwrap_or_else(PoisonError::into_inner).take());
        // The thread may have ended already.
        let _ = self.calls.send(Call::Close);
        if let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // A panic of the thread was reported by the panic hook.
            let _ = thread.join();
        }
    }

    fn call<T>(&self, call: impl FnOnce(Reply<T>) -> Call) -> Result<T, StoreError> {
        let (reply, answer) = mpsc::channel();
        self.calls.send(call(reply)).map_err(|_| StoreError::Closed)?;
        answer.recv().map_err(|_| StoreError::Closed)?
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.close();
    }
}

fn run(path: &Path, opened: &Reply<Arc<Database>>, incoming: &mpsc::Receiver<Call>) {
    let families = checkpoint::families(path, &options());
    let opened_here = DB::open_cf_descriptors(&options(), path, families);
    let database = opened_here
        .map_err(|e| StoreError::Database { path: path.to_owned(), reason: e.to_string() })
        .map(|database| Database { database, family: RwLock::default(), path: path.to_owned() })
        .and_then(|database| database.settle_families().map(|()| database));
    let database = match database {
        Ok(database) => Arc::new(database),
        Err(error) => {
            let _ = opened.send(Err(error));
            return;
        }
    };
    // A caller that does not wait for its answer any more needs none: failed sends are ignored.
    let _ = opened.send(Ok(database.clone()));
    while let Ok(call) = incoming.recv() {
        match call {
            Call::Identity(reply) => drop(reply.send(database.identity())),
            Call::Adopt(identity, reply) => drop(reply.send(database.adopt(&identity))),
            Call::Update(identity, reply) => drop(reply.send(database.update(&identity))),
            Call::Begin(reply) => drop(reply.send(database.begin())),
            Call::Hold(replica, reply) => drop(reply.send(database.hold(replica))),
            Call::Release(group, reply) => drop(reply.send(database.release(group))),
            Call::Boot(reply) => drop(reply.send(database.boot())),
            Call::Opened(reply) => drop(reply.send(database.opened())),
            Call::MarkOpened(reply) => drop(reply.send(database.mark_opened())),
            Call::Scrubbed(reply) => drop(reply.send(database.read(SCRUB))),
            Call::Beginning(reply) => drop(reply.send(database.read(BEGINNING))),
            Call::BeginAnew(identity, beginning, reply) => {
                drop(reply.send(database.begin_anew(&identity, beginning)));
            }
            Call::NoteScrub(record, reply) => drop(reply.send(database.write(SCRUB, &record))),
            Call::Save(fill, reply) => drop(reply.send(database.save(fill))),
            Call::Replace(carry, fill, reply) => {
                drop(reply.send(database.replace(&carry, fill)));
            }
            Call::Verify { from, bytes, pieces, reply } => {
                let read = database.verify(&from, bytes, &pieces);
                drop(pieces);
                drop(reply.send(read));
            }
            Call::Scan(pieces, reply) => drop(reply.send(database.scan(&pieces))),
            Call::Close => return,
        }
    }
}

/// A few records of a few kilobytes: everything that RocksDB sets aside for more is turned down.
fn options() -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    options.set_write_buffer_size(1 << 20);
    options.set_max_write_buffer_number(2);
    // Its log holds the checkpoints' changes. A file of it goes when no family has unflushed records there.
    options.set_max_total_wal_size(32 << 20);
    options.set_max_background_jobs(1);
    options.set_keep_log_file_num(2);
    options.set_log_level(LogLevel::Warn);
    options.set_max_open_files(16);
    options.set_paranoid_checks(true);
    options
}

struct Database {
    database: DB,
    /// The column family that holds the checkpoint.
    family: RwLock<String>,
    path: PathBuf,
}

impl Database {
    fn identity(&self) -> Result<Option<Identity>, StoreError> {
        self.read(IDENTITY)
    }

    fn adopt(&self, identity: &Identity) -> Result<(), StoreError> {
        match self.identity()? {
            None => self.write(IDENTITY, identity),
            Some(known) => self.renew(&known, identity),
        }
    }

    fn update(&self, identity: &Identity) -> Result<(), StoreError> {
        self.renew(&self.member()?, identity)
    }

    fn renew(&self, known: &Identity, identity: &Identity) -> Result<(), StoreError> {
        if (known.cluster, known.node) != (identity.cluster, identity.node) {
            return Err(StoreError::Belongs { cluster: known.cluster, node: known.node });
        }
        let (replicas, begun) = (known.replicas.clone(), known.begun);
        let renewed = Identity { replicas, begun, ..identity.clone() };
        if renewed == *known { Ok(()) } else { self.write(IDENTITY, &renewed) }
    }

    fn member(&self) -> Result<Identity, StoreError> {
        self.identity()?.ok_or(StoreError::NoMember)
    }

    fn begin(&self) -> Result<(), StoreError> {
        let known = self.member()?;
        if known.begun {
            return Ok(());
        }
        self.write(IDENTITY, &Identity { begun: true, ..known })
    }

    fn hold(&self, replica: ReplicaRecord) -> Result<ReplicaRecord, StoreError> {
        let mut identity = self.member()?;
        if let Some(known) = identity.replica(replica.group) {
            return Ok(known);
        }
        identity.replicas.push(replica);
        identity.replicas.sort_by_key(|replica| replica.group);
        self.write(IDENTITY, &identity).map(|()| replica)
    }

    fn release(&self, group: u32) -> Result<(), StoreError> {
        let mut identity = self.member()?;
        if identity.replica(group).is_none() {
            return Ok(());
        }
        identity.replicas.retain(|replica| replica.group != group);
        self.write(IDENTITY, &identity)
    }

    fn boot(&self) -> Result<u64, StoreError> {
        let mut boots: Boots = self.read(BOOTS)?.unwrap_or_default();
        boots.count += 1;
        self.write(BOOTS, &boots)?;
        Ok(boots.count)
    }

    fn opened(&self) -> Result<bool, StoreError> {
        Ok(self.read::<Boots>(BOOTS)?.unwrap_or_default().opened)
    }

    fn mark_opened(&self) -> Result<(), StoreError> {
        let boots: Boots = self.read(BOOTS)?.unwrap_or_default();
        if boots.opened {
            return Ok(());
        }
        self.write(BOOTS, &Boots { opened: true, ..boots })
    }

    fn begin_anew(
        &self,
        identity: &Identity,
        beginning: BeginningRecord,
    ) -> Result<(), StoreError> {
        let boots: Boots = self.read(BOOTS)?.unwrap_or_default();
        let mut batch = WriteBatch::default();
        batch.put(IDENTITY, record::format(identity));
        batch.put(BEGINNING, record::format(&beginning));
        // A device that it finds blank is not the one that it had.
        batch.put(BOOTS, record::format(&Boots { opened: true, ..boots }));
        let mut durable = WriteOptions::default();
        durable.set_sync(true);
        self.database.write_opt(batch, &durable).map_err(|e| self.failed(&e))
    }

    fn read<T: record::Versioned>(&self, key: &[u8]) -> Result<Option<T>, StoreError> {
        let bytes = self.database.get(key).map_err(|e| self.failed(&e))?;
        let parsed = bytes.map(|bytes| record::parse(&bytes)).transpose();
        parsed.map_err(|reason| StoreError::Record {
            path: self.path.clone(),
            record: String::from_utf8_lossy(key).into_owned(),
            reason,
        })
    }

    fn write<T: record::Versioned>(&self, key: &[u8], value: &T) -> Result<(), StoreError> {
        let mut batch = WriteBatch::default();
        batch.put(key, record::format(value));
        let mut durable = WriteOptions::default();
        durable.set_sync(true);
        self.database.write_opt(batch, &durable).map_err(|e| self.failed(&e))
    }

    fn failed(&self, error: &rocksdb::Error) -> StoreError {
        StoreError::Database { path: self.path.clone(), reason: error.to_string() }
    }
}
