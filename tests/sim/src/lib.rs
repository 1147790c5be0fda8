//! The deterministic simulator: a cluster in one thread, in which everything that can go wrong does.
//!
//! The very state machines that run in production ([`basalt_core::Shard`], [`basalt_client::VolumeClient`])
//! are stepped here by a heap of events in simulated time. Disks, links and clocks are models; all of
//! them are driven by one seed, so a run can be repeated to the last event.
//!
//! How a run goes ([`world::World::run`]):
//!
//! 1. [`options::Options::draw`] draws the size of the world and the families of faults that it has.
//! 2. Nodes are formatted and started ([`node`]), volumes attached ([`actor`]); users ask for reads,
//!    writes and unmaps ([`workload`]), where every unit of data names the write it comes from
//!    ([`stamp`]).
//! 3. The [`nemesis`] breaks links, cuts power, stops processes, damages data.
//! 4. While this lasts, [`check::oracle`] looks at every acknowledgement the moment it leaves, and
//!    [`check::raft`] at every message.
//! 5. At the end ([`ending`]) faults stop, everything asked must be answered, replicas must agree, and
//!    each unit's history must be that of a register ([`check::register`]).
//!
//! The models:
//!
//! * [`disk`]: cache, media and operations in flight; atoms; seven ways to cut the power; damage.
//! * [`net`]: links are ordered byte streams that stall, break within frames, and deliver late.
//! * [`clock`]: every process has an origin and a speed of its own.
//!
//! To find out why a seed fails: `sim SEED --shrink` says which faults are needed and prints a shorter
//! command; with `--trace` that prints every event. A process that stops is modelled as one whose
//! effects are delayed: it may have decided and not yet done.
//!
//! What the simulator cannot show: the kernel, real sockets and real concurrency. `tests/chaos` and
//! `tests/interop` do that.

pub mod actor;
pub mod bugs;
pub mod check;
pub mod clock;
pub mod clones;
pub mod disk;
pub mod ending;
pub mod event;
pub mod members;
pub mod metadata;
pub mod nemesis;
pub mod net;
pub mod node;
pub mod options;
pub mod queue;
pub mod report;
pub mod rng;
pub mod runner;
pub mod scenarios;
pub mod script;
pub mod scrubbed;
pub mod shrink;
pub mod snapshots;
pub mod stamp;
pub mod store;
pub mod together;
pub mod workload;
pub mod world;
