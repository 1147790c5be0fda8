//! Starting a reactor, and talking to it from other threads.

use crate::checkpoints::Checkpoints;
use crate::config::{NodeError, ReactorConfig, Routes};
use crate::reactor::{Bound, Reactor};
use crate::status::ReactorStatus;
use crate::sys;
use basalt_core::event::{Effect, Event};
use basalt_core::shard::HeldGroup;
use basalt_link::LinkAuth;
use std::any::Any;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// How long a reactor may take to tell its status. A turn takes far less than a millisecond.
const STATUS_TIME: Duration = Duration::from_secs(5);

/// A message to a reactor.
pub(crate) enum Mail {
    Event(Event),
    Tenant(usize, Box<dyn Any + Send>),
    Routes(Routes),
    Auth(LinkAuth),
    Status(Sender<Box<ReactorStatus>>),
    Held(Sender<Vec<HeldGroup>>),
    Stop,
    Kill,
    Panic(String),
}

/// Sends messages to a reactor. Cheap to clone; for the control path only.
#[derive(Clone)]
pub struct Mailbox {
    sender: Sender<Mail>,
    wake: Arc<OwnedFd>,
    ended: Arc<OnceLock<Result<(), String>>>,
}

impl Mailbox {
    fn send(&self, mail: Mail) {
        if self.sender.send(mail).is_ok() {
            sys::eventfd_signal(&self.wake);
        }
    }

    /// Gives an event to the shard. A reactor that has ended drops it.
    pub fn event(&self, event: Event) {
        self.send(Mail::Event(event));
    }

    /// Gives a command to a tenant; see [`crate::TenantEvent::Command`].
    pub fn tenant(&self, index: usize, command: Box<dyn Any + Send>) {
        self.send(Mail::Tenant(index, command));
    }

    /// Replaces the table of routes.
    pub fn routes(&self, routes: Routes) {
        self.send(Mail::Routes(routes));
    }

    /// Replaces what the reactor shows on its links and asks of others. Links that were opened by a secret which is
    /// accepted no more end; further tickets are shown on links that stand.
    pub fn auth(&self, auth: LinkAuth) {
        self.send(Mail::Auth(auth));
    }

    /// The reactor's state. Waits for the reactor to answer.
    pub fn status(&self) -> Result<ReactorStatus, NodeError> {
        let (sender, answer) = channel();
        self.send(Mail::Status(sender));
        match answer.recv_timeout(STATUS_TIME) {
            Ok(status) => Ok(*status),
            Err(RecvTimeoutError::Timeout) => Err(NodeError::Timeout(STATUS_TIME)),
            Err(RecvTimeoutError::Disconnected) => Err(NodeError::Ended(self.reason())),
        }
    }

    /// What the shard's replicas hold of volumes. Looks at all of them, and waits for the reactor to answer.
    pub fn held(&self) -> Result<Vec<HeldGroup>, NodeError> {
        let (sender, answer) = channel();
        self.send(Mail::Held(sender));
        match answer.recv_timeout(STATUS_TIME) {
            Ok(held) => Ok(held),
            Err(RecvTimeoutError::Timeout) => Err(NodeError::Timeout(STATUS_TIME)),
            Err(RecvTimeoutError::Disconnected) => Err(NodeError::Ended(self.reason())),
        }
    }

    /// Why the reactor has ended, if it has: nothing wrong after a stop, or what went wrong. A
    /// process whose reactor has failed must end too.
    pub fn ended(&self) -> Option<Result<(), String>> {
        self.ended.get().cloned()
    }

    fn reason(&self) -> String {
        match self.ended.get() {
            Some(Err(reason)) => reason.clone(),
            _ => "it was stopped".into(),
        }
    }
}

/// A running reactor. Dropping it stops the reactor gracefully.
pub struct ReactorHandle {
    mailbox: Mailbox,
    thread: Mutex<Option<JoinHandle<()>>>,
    bound: Bound,
}

impl std::ops::Deref for ReactorHandle {
    type Target = Mailbox;
    fn deref(&self) -> &Mailbox {
        &self.mailbox
    }
}

impl ReactorHandle {
    /// For other threads that talk to the reactor.
    pub fn mailbox(&self) -> Mailbox {
        self.mailbox.clone()
    }

    /// The address of the data port.
    pub fn data_addr(&self) -> Option<SocketAddr> {
        self.bound.data
    }

    /// The addresses of the stream listeners, in the order of the configuration; nothing for unix
    /// sockets.
    pub fn stream_addrs(&self) -> &[Option<SocketAddr>] {
        &self.bound.streams
    }

    /// Stops the reactor: tenants put things in order, the shard hands its leaderships over, what is
    /// queued is sent; each within its bound. Then waits for the end of the thread. To be called
    /// once; later calls give the same answer.
    pub fn stop(&self) -> Result<(), NodeError> {
        self.mailbox.send(Mail::Stop);
        self.join()
    }

    /// Ends the reactor at once, with nothing handed over and nothing flushed, as a crash would but
    /// for operations that the kernel has begun.
    pub fn kill(&self) -> Result<(), NodeError> {
        self.mailbox.send(Mail::Kill);
        self.join()
    }

    /// Makes the reactor's thread panic, to test what its owner does then.
    #[doc(hidden)]
    pub fn panic_for_test(&self, text: &str) {
        self.mailbox.send(Mail::Panic(text.into()));
    }

    fn join(&self) -> Result<(), NodeError> {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // Panics are caught within the thread and told through `ended`.
            let _ = thread.join();
        }
        match self.mailbox.ended.get() {
            Some(Err(reason)) => Err(NodeError::Ended(reason.clone())),
            _ => Ok(()),
        }
    }
}

impl Drop for ReactorHandle {
    fn drop(&mut self) {
        let _ = self.stop();
    }
}

/// Starts a reactor on a thread of its own. Returns when its device is open and its listeners are
/// bound; the shard's recovery goes on.
pub fn start(mut config: ReactorConfig) -> Result<ReactorHandle, NodeError> {
    let wake = Arc::new(sys::eventfd().map_err(NodeError::system("no eventfd"))?);
    let (sender, mail) = channel();
    let (ready, started) = channel();
    let ended = Arc::new(OnceLock::new());
    let mailbox = Mailbox { sender, wake: wake.clone(), ended: ended.clone() };
    let store = config.shard.as_mut().and_then(|setup| setup.checkpoints.take());
    let checkpoints = Checkpoints::start(store, &config.name, mailbox.clone())?;
    let thread = std::thread::Builder::new()
        .name(config.name.clone())
        .spawn(move || thread_main(config, checkpoints, mail, wake, &ready, &ended))
        .map_err(NodeError::system("no thread"))?;
    match started.recv() {
        Ok(Ok(bound)) => Ok(ReactorHandle { mailbox, thread: Mutex::new(Some(thread)), bound }),
        Ok(Err(error)) => {
            let _ = thread.join();
            Err(error)
        }
        Err(_) => {
            let _ = thread.join();
            Err(NodeError::Ended(mailbox.reason()))
        }
    }
}

fn thread_main(
    mut config: ReactorConfig,
    checkpoints: Checkpoints,
    mail: Receiver<Mail>,
    wake: Arc<OwnedFd>,
    ready: &Sender<Result<Bound, NodeError>>,
    ended: &OnceLock<Result<(), String>>,
) {
    // Shared with the reactor, so that a panic can be reported after the reactor is gone.
    let notices = std::mem::replace(&mut config.notices, Box::new(|_| {}));
    let notices = Arc::new(Mutex::new(notices));
    let shared = notices.clone();
    let tell = move |effect: Effect| {
        let mut notices = shared.lock().unwrap_or_else(PoisonError::into_inner);
        (*notices)(effect);
    };
    config.notices = Box::new(tell.clone());
    let name = config.name.clone();
    let work = AssertUnwindSafe(|| match Reactor::new(config, checkpoints, mail, wake) {
        Ok((mut reactor, bound)) => {
            let _ = ready.send(Ok(bound));
            reactor.run()
        }
        Err(error) => {
            let _ = ready.send(Err(error));
            Ok(())
        }
    });
    let result = match catch_unwind(work) {
        Ok(result) => result.map_err(|e| e.to_string()),
        Err(panic) => Err(format!("it panicked: {}", panic_text(&*panic))),
    };
    let failure = result.clone().err();
    // Told before the notice, so that whoever hears the notice finds it.
    let _ = ended.set(result);
    if let Some(reason) = failure {
        let text = format!("the reactor {name} has failed: {reason}");
        tracing::error!("{text}");
        tell(Effect::Notice { alarm: true, text });
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no text".into())
}
