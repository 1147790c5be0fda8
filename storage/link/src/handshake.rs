//! The opening of a link: `Hello`, `Challenge`, `Proof`, `Welcome`.
//!
//! The side that dials says who it is and by which key it is going to prove that, the other one answers with a
//! nonce, the first proves, the other one proves. In a cluster without a secret `Welcome` follows at once. A side
//! with a secret and one without refuse each other.

use crate::LinkAuth;
use crate::grants::Grants;
use crate::key::KeyId;
use crate::planted::{self, Bug};
use crate::ticket::Ticket;
use crate::transcript::{self, Transcript};
use basalt_wire::frame::{
    Challenge, Claim, ClaimBy, Frame, Hello, Mac, Nonce, PROTOCOL_VERSION, Present, Role, Welcome,
};
use basalt_wire::ids::{Address, ClusterId};
use ring::hmac;

/// By what a link was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proven {
    /// The key of the cluster that was used, or by which the ticket was made.
    pub key: KeyId,
    /// Whether a ticket was shown, and not the secret's own key.
    pub by_ticket: bool,
    /// What tells the link from all others.
    pub(crate) session: Mac,
}

impl Proven {
    /// One more ticket for the link.
    pub fn present(&self, ticket: &Ticket) -> Present {
        let body = ticket.body().clone();
        let proof = transcript::present(&ticket.proofs(), &self.session, &body);
        Present { body, proof }
    }
}

// ---- the side that dials ----

/// The handshake of the side that dials.
#[derive(Debug)]
pub struct Dialler(Dialling);

enum Dialling {
    /// `Hello` was sent; with the key that is to be proven.
    Greeted(Hello, Option<Own>),
    /// The proof was sent.
    Proved(Transcript, Own),
    Over,
}

impl std::fmt::Debug for Dialling {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Dialling::Greeted(..) => "Greeted",
            Dialling::Proved(..) => "Proved",
            Dialling::Over => "Over",
        })
    }
}

/// The key that a side proves to know.
struct Own {
    key: hmac::Key,
    id: KeyId,
    by_ticket: bool,
}

/// What comes of a frame for the side that dials.
#[derive(Debug, PartialEq)]
pub enum DialStep {
    /// This is to be sent.
    Send(Frame),
    /// The link is open.
    Open(Welcome, Option<Proven>),
    /// It is not going to open, and why.
    Refused(String),
    /// The frame has no business here.
    Unexpected,
}

impl Dialler {
    /// Begins: the `Hello` is to be sent.
    ///
    /// # Errors
    /// If there is nothing to show.
    pub fn start(
        auth: &LinkAuth,
        cluster: ClusterId,
        target: Address,
        role: Role,
        nonce: Nonce,
    ) -> Result<(Dialler, Hello), String> {
        let (by, own) = match auth {
            LinkAuth::Open => (None, None),
            LinkAuth::Secret(keys) => {
                let key = keys.first();
                let own = Own { key: key.proofs.clone(), id: key.id, by_ticket: false };
                (Some(ClaimBy::Secret { key: key.id.0 }), Some(own))
            }
            LinkAuth::Tickets(tickets) => {
                // The others follow when the link is open.
                let ticket =
                    tickets.iter().max_by_key(|ticket| ticket.expires()).ok_or_else(|| {
                        "there is no ticket: the control plane has given none for any volume"
                            .to_owned()
                    })?;
                let own = Own { key: ticket.proofs(), id: ticket.key(), by_ticket: true };
                (Some(ClaimBy::Ticket { body: ticket.body().clone() }), Some(own))
            }
        };
        let claim = by.map(|by| Claim { nonce, by });
        let hello = Hello { version: PROTOCOL_VERSION, cluster, target, role, claim };
        Ok((Dialler(Dialling::Greeted(hello.clone(), own)), hello))
    }

    /// Takes a frame of the other side.
    pub fn receive(&mut self, frame: Frame) -> DialStep {
        let state = std::mem::replace(&mut self.0, Dialling::Over);
        match (state, frame) {
            (Dialling::Greeted(hello, own), Frame::Challenge(challenge)) => {
                self.prove(&hello, own, &challenge)
            }
            (Dialling::Greeted(_, own), Frame::Welcome(welcome)) => {
                if let Some(why) = unwelcome(&welcome) {
                    return DialStep::Refused(why);
                }
                match own {
                    None => DialStep::Open(welcome, None),
                    Some(_) => DialStep::Refused(
                        "it asks for no proof, as a node without a secret (--insecure) does: start it \
                         with the cluster's secret (--secret-file)"
                            .to_owned(),
                    ),
                }
            }
            (Dialling::Proved(transcript, own), Frame::Welcome(welcome)) => {
                if let Some(why) = unwelcome(&welcome) {
                    return DialStep::Refused(why);
                }
                if !transcript.is_acceptor(&own.key, &welcome) {
                    let why = "it does not prove to belong to the cluster: it does not know the secret, \
                               or the network changes what is sent";
                    return DialStep::Refused(why.to_owned());
                }
                let session = transcript.session(&own.key);
                let proven = Proven { key: own.id, by_ticket: own.by_ticket, session };
                DialStep::Open(welcome, Some(proven))
            }
            _ => DialStep::Unexpected,
        }
    }

    fn prove(&mut self, hello: &Hello, own: Option<Own>, challenge: &Challenge) -> DialStep {
        if challenge.version != PROTOCOL_VERSION {
            return DialStep::Refused(other_version(challenge.version));
        }
        let Some(own) = own else {
            let why = "it asks for a proof, and this side has no secret (--insecure): start both sides \
                       with the cluster's secret (--secret-file)";
            return DialStep::Refused(why.to_owned());
        };
        let transcript = Transcript::new(hello, &challenge.nonce);
        let proof = transcript.dialler(&own.key);
        self.0 = Dialling::Proved(transcript, own);
        DialStep::Send(Frame::Proof(proof))
    }
}

fn other_version(version: u16) -> String {
    format!("it answers in protocol version {version}, this side speaks {PROTOCOL_VERSION}")
}

/// Why a `Welcome` is none.
fn unwelcome(welcome: &Welcome) -> Option<String> {
    if !welcome.refusal.is_empty() {
        // The other end's words are shown, but never as more than one printable line.
        let text: String = welcome.refusal.chars().filter(|c| !c.is_control()).collect();
        return Some(format!("refused: {text}"));
    }
    (welcome.version != PROTOCOL_VERSION).then(|| other_version(welcome.version))
}

// ---- the side that answers ----

/// The handshake of the side that answers.
#[derive(Debug, Default)]
pub struct Acceptor(Option<Box<Pending>>);

/// What is admitted if the proof is right.
struct Pending {
    admission: Admission,
    transcript: Transcript,
    key: hmac::Key,
}

impl std::fmt::Debug for Pending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.admission.fmt(f)
    }
}

/// What comes of a `Hello`.
#[derive(Debug)]
pub enum AfterHello {
    /// The proof is awaited; this is to be sent.
    Challenge(Challenge),
    /// Nobody is asked who he is: the link is open.
    Admit(Admission),
    /// The link is refused, and why.
    Refuse(String),
}

/// Whom a link was opened for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admission {
    /// What the other side said and, where it was asked, has proven.
    pub hello: Hello,
    /// What it may ask for, as a client.
    pub grants: Grants,
    /// By what it was proven.
    pub proven: Option<Proven>,
}

impl Acceptor {
    /// Whether `Hello` has come, and the proof is awaited.
    pub fn awaits_proof(&self) -> bool {
        self.0.is_some()
    }

    /// Takes a `Hello` of this protocol version that is meant for this cluster; `now` in seconds since 1970.
    pub fn hello(&mut self, hello: Hello, auth: &LinkAuth, nonce: Nonce, now: u64) -> AfterHello {
        let keys = match (auth, &hello.claim) {
            (LinkAuth::Secret(keys), Some(_)) => keys,
            (LinkAuth::Open, None) => {
                let grants = Grants::All;
                return AfterHello::Admit(Admission { hello, grants, proven: None });
            }
            (LinkAuth::Secret(_), None) => {
                let why = "this node asks who opens a link, and nothing was shown: start the other side with \
                           the cluster's secret (--secret-file), or as a client with credentials";
                return AfterHello::Refuse(why.to_owned());
            }
            (LinkAuth::Open, Some(_)) => {
                let why = "this node has no secret (--insecure) and the other side has one: start both with the \
                           cluster's secret, or both without";
                return AfterHello::Refuse(why.to_owned());
            }
            (LinkAuth::Tickets(_), _) => {
                return AfterHello::Refuse("clients take no links".to_owned());
            }
        };
        match claimed(&hello, keys, now) {
            Err(why) => AfterHello::Refuse(why),
            Ok((grants, own)) => {
                let transcript = Transcript::new(&hello, &nonce);
                let session = transcript.session(&own.key);
                let proven = Some(Proven { key: own.id, by_ticket: own.by_ticket, session });
                let admission = Admission { hello, grants, proven };
                self.0 = Some(Box::new(Pending { admission, transcript, key: own.key }));
                AfterHello::Challenge(Challenge { version: PROTOCOL_VERSION, nonce })
            }
        }
    }

    /// Takes the proof. `welcome` is what the side says of itself, and comes back with its own proof.
    ///
    /// # Errors
    /// If the proof is wrong, or none was awaited.
    pub fn proof(
        &mut self,
        proof: &Mac,
        mut welcome: Welcome,
    ) -> Result<(Admission, Welcome), String> {
        let pending = self.0.take().ok_or_else(|| "no proof was asked for".to_owned())?;
        let Pending { admission, transcript, key } = *pending;
        if !transcript.is_dialler(&key, proof) {
            return Err("the proof is wrong: the key is not known there".to_owned());
        }
        welcome.proof = Some(transcript.acceptor(&key, &welcome));
        Ok((admission, welcome))
    }
}

/// What a claim is worth if it is proven, and by which key that is.
fn claimed(hello: &Hello, keys: &crate::Keys, now: u64) -> Result<(Grants, Own), String> {
    let by = hello.claim.as_ref().map(|claim| &claim.by);
    match (by, &hello.role) {
        (Some(ClaimBy::Secret { key }), _) => {
            let found = keys.find(KeyId(*key)).ok_or_else(|| {
                "the secret that it knows is not accepted here (any more): give both sides the same secret \
                 file"
                    .to_owned()
            })?;
            let own = Own { key: found.proofs.clone(), id: found.id, by_ticket: false };
            Ok((Grants::All, own))
        }
        (Some(ClaimBy::Ticket { .. }), Role::Peer { .. }) if !planted::is(Bug::TicketOpensPeer) => {
            Err("a ticket is for clients; a node shows the cluster's secret".to_owned())
        }
        (Some(ClaimBy::Ticket { body }), _) => {
            let (said, key) = keys.admit(body, hello.cluster, now)?;
            let grants = Grants::of(&said);
            Ok((grants, Own { key, id: said.key, by_ticket: true }))
        }
        (None, _) => Err("nothing is claimed".to_owned()),
    }
}
