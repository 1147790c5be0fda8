//! Who may call what: everything that comes to the gRPC API passes here first.
//!
//! A caller is known by the certificate of its connection, else by a bearer token; what it may is said by the one
//! table of [`basalt_security::permissions`]. What is not allowed there is denied, before the request is looked
//! at. Calls that change something are recorded with their outcome.

pub mod facts;
pub mod recorder;
pub mod transport;

use crate::daemon::Daemon;
use crate::metadata::now_ms;
use basalt_api::error;
use basalt_api::traced::code_of;
use basalt_api::v1::ErrorReason;
use basalt_security::audit::Call;
use basalt_security::join::{self, JoinToken};
use basalt_security::permissions::{Access, Recorded, Rule, rule_of};
use basalt_security::principal::Means;
use basalt_security::{Principal, token};
use facts::{Facts, Requests};
use http::header::AUTHORIZATION;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, Full, Limited};
use recorder::Recorder;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::SystemTime;
use tonic::body::Body;
use tonic::{Code, Status};
use tower::{Layer, Service};
use transport::Shown;

/// The longest request that is read for the audit: the longest that is decoded.
const REQUEST_MAX: usize = 4 << 20;
const BEARER: &str = "Bearer ";

/// What all calls pass.
pub struct Gate {
    daemon: Arc<Daemon>,
    recorder: Arc<Recorder>,
    requests: Requests,
}

/// Puts a [`Gate`] before services.
#[derive(Clone)]
pub struct AccessLayer {
    gate: Arc<Gate>,
}

impl AccessLayer {
    /// Of a node.
    pub fn new(daemon: Arc<Daemon>, recorder: Arc<Recorder>) -> AccessLayer {
        AccessLayer { gate: Arc::new(Gate { daemon, recorder, requests: Requests::of_api() }) }
    }
}

impl<S> Layer<S> for AccessLayer {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded { gate: self.gate.clone(), inner }
    }
}

/// Services behind a [`Gate`].
#[derive(Clone)]
pub struct Guarded<S> {
    gate: Arc<Gate>,
    inner: S,
}

impl<S> Service<Request<Body>> for Guarded<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        // The one that said that it is ready does the work.
        let ready = self.inner.clone();
        let inner = std::mem::replace(&mut self.inner, ready);
        Box::pin(pass(self.gate.clone(), inner, request))
    }
}

async fn pass<S>(
    gate: Arc<Gate>,
    mut inner: S,
    mut request: Request<Body>,
) -> Result<Response<Body>, S::Error>
where
    S: Service<Request<Body>, Response = Response<Body>>,
{
    let path = request.uri().path().to_owned();
    let rule = rule_of(&path);
    if rule.is_some_and(|rule| rule.access == Access::Open) {
        return inner.call(request).await;
    }
    let known = gate.authenticate(request.extensions().get::<Shown>(), request.headers());
    known.iter().for_each(|who| crate::calls::by(&who.to_string()));
    let allowed = known.as_ref().map_err(Clone::clone).and_then(|who| authorise(rule, &path, who));
    let recorded = match (&allowed, rule.map_or(Recorded::None, |rule| rule.recorded)) {
        (Ok(()), Recorded::All) | (Err(_), Recorded::All | Recorded::Denied) => true,
        (_, Recorded::None) | (Ok(()), Recorded::Denied) => false,
    };
    let mut entry = recorded.then(|| Entry::new(&gate, rule, known.as_ref().ok()));
    if let Some(entry) = entry.as_mut().filter(|_| known.is_ok()) {
        match entry.read(request).await {
            Ok(read) => request = read,
            Err(status) => return Ok(entry.end_with(status)),
        }
    }
    match (allowed, known) {
        (Ok(()), Ok(principal)) => {
            request.extensions_mut().insert(principal);
            let response = inner.call(request).await?;
            if let Some(entry) = &mut entry {
                entry.end(code_of(&response));
            }
            Ok(response)
        }
        (Err(status), _) | (_, Err(status)) => Ok(match &mut entry {
            Some(entry) => entry.end_with(status),
            None => status.into_http(),
        }),
    }
}

impl Gate {
    /// Who calls.
    fn authenticate(
        &self,
        shown: Option<&Shown>,
        headers: &HeaderMap,
    ) -> Result<Principal, Status> {
        let Some(keyring) = &self.daemon.keyring else { return Ok(Principal::insecure()) };
        if let Some(holder) = shown.and_then(Shown::holder) {
            if !keyring.accepts(holder, SystemTime::now()) {
                let message = format!(
                    "the certificate of '{}' is over, or of an authority that the cluster gave up; connect \
                     anew with a new one",
                    holder.name
                );
                return Err(error::status(ErrorReason::CredentialsInvalid, message, &[]));
            }
            let (name, role) = (holder.name.clone(), Some(holder.role));
            return Ok(Principal { name, role, means: Means::Certificate });
        }
        let Some(value) = headers.get(AUTHORIZATION) else {
            let message = "this call needs a certificate of the cluster's authority, or a token (authorization: \
                           Bearer ...)";
            return Err(error::status(ErrorReason::CredentialsMissing, message, &[]));
        };
        let bearer = value.to_str().ok().and_then(|text| text.strip_prefix(BEARER));
        bearer.and_then(|text| self.bearer(text)).ok_or_else(|| {
            let message = "the token is unknown, was revoked, or is over";
            error::status(ErrorReason::CredentialsInvalid, message, &[])
        })
    }

    fn bearer(&self, text: &str) -> Option<Principal> {
        let now = now_ms();
        if text.starts_with(join::PREFIX) {
            let token = JoinToken::parse(text).ok()?;
            let secrets = self.daemon.keyring.as_ref()?.secrets()?;
            token.check(&secrets, u64::try_from(now).ok()?).ok()?;
            let (name, role) = (token.id_text(), None);
            return Some(Principal { name, role, means: Means::JoinToken });
        }
        let digest = token::digest(text).ok()?;
        let engine = self.daemon.engine().ok()?;
        let found = engine.metadata.look(|state| state.token_of(&digest).cloned());
        let token = found.filter(|token| now < token.expires_ms)?;
        let role = token.role.parse().ok()?;
        Some(Principal { name: token.id, role: Some(role), means: Means::Token })
    }
}

/// Whether a known caller may call a method.
fn authorise(rule: Option<&Rule>, path: &str, who: &Principal) -> Result<(), Status> {
    if rule.is_some_and(|rule| rule.allows(who)) {
        return Ok(());
    }
    let permission = rule.map_or("unknown", |rule| rule.permission);
    let method = path.trim_start_matches('/').escape_debug().to_string();
    let role = who.role_name();
    let message = format!(
        "Permission '{permission}' denied on resource '{method}' (or it might not exist): '{}' has the role \
         {role}",
        who.name
    );
    let facts = [
        ("permission", permission.to_owned()),
        ("resource", method),
        ("role", role.to_owned()),
        ("principal", who.to_string()),
    ];
    Err(error::status(ErrorReason::PermissionDenied, message, &facts))
}

/// Whether a caller may call another method, too: what one call does may be what others do one by one.
///
/// # Errors
/// If it may not.
pub fn permit(who: &Principal, method: &str) -> Result<(), Status> {
    let path = format!("/{method}");
    authorise(rule_of(&path), &path, who)
}

/// Who calls. Everything that comes to a service has passed the gate, which says so.
pub fn caller<T>(request: &tonic::Request<T>) -> Principal {
    let found = request.extensions().get::<Principal>();
    found.expect("no call comes past the gate").clone()
}

/// The record of one call. A call whose caller goes away before it ends is recorded, too.
struct Entry {
    gate: Arc<Gate>,
    call: Option<Call>,
}

impl Entry {
    fn new(gate: &Arc<Gate>, rule: Option<&Rule>, who: Option<&Principal>) -> Entry {
        let call = Call {
            principal: who.map(ToString::to_string).unwrap_or_default(),
            role: who.map(|who| who.role_name().to_owned()).unwrap_or_default(),
            method: rule.map(|rule| rule.method.to_owned()).unwrap_or_default(),
            code: name_of(Code::Cancelled),
            ..Call::default()
        };
        Entry { gate: gate.clone(), call: Some(call) }
    }

    /// Reads the request, and gives it back as it was.
    async fn read(&mut self, request: Request<Body>) -> Result<Request<Body>, Status> {
        let (head, body) = request.into_parts();
        let bytes = Limited::new(body, REQUEST_MAX).collect().await.map_err(|problem| {
            let message = format!("the request can not be read, or is too long: {problem}");
            error::invalid("request", message)
        })?;
        let bytes = bytes.to_bytes();
        if let Some(call) = &mut self.call {
            let Facts { resource, request_id } = self.gate.requests.facts(&call.method, &bytes);
            crate::calls::about(&resource, &request_id);
            (call.resource, call.request_id) = (resource, request_id);
        }
        Ok(Request::from_parts(head, Body::new(Full::new(bytes))))
    }

    fn end(&mut self, code: Code) {
        if let Some(mut call) = self.call.take() {
            call.code = name_of(code);
            call.time_ms = u64::try_from(now_ms()).unwrap_or(0);
            self.gate.recorder.record(call);
        }
    }

    fn end_with(&mut self, status: Status) -> Response<Body> {
        self.end(status.code());
        status.into_http()
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.end(Code::Cancelled);
    }
}

/// The canonical name of a code.
fn name_of(code: Code) -> String {
    let mut name = String::new();
    for letter in format!("{code:?}").chars() {
        if letter.is_ascii_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(letter.to_ascii_uppercase());
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;
    use basalt_security::Role;

    #[test]
    fn codes_have_canonical_names() {
        for (code, name) in [
            (Code::Ok, "OK"),
            (Code::PermissionDenied, "PERMISSION_DENIED"),
            (Code::Unauthenticated, "UNAUTHENTICATED"),
            (Code::InvalidArgument, "INVALID_ARGUMENT"),
        ] {
            assert_eq!(name_of(code), name);
        }
    }

    #[test]
    fn a_denial_says_what_was_missing() {
        let who =
            Principal { name: "ci".to_owned(), role: Some(Role::Viewer), means: Means::Token };
        let path = "/basalt.v1.Admin/CreateVolume";
        let denied = authorise(rule_of(path), path, &who).expect_err("denied");
        assert_eq!(denied.code(), Code::PermissionDenied);
        assert!(denied.message().starts_with("Permission 'volumes.create' denied on resource"));
        assert_eq!(error::reason_of(&denied), Some(ErrorReason::PermissionDenied));
        assert_eq!(error::fact_of(&denied, "principal").as_deref(), Some("token:ci"));
        assert!(permit(&who, "basalt.v1.Admin/GetVolume").is_ok());
        assert!(permit(&who, "basalt.v1.Quotas/UpdateQuota").is_err());
        let path = "/basalt.v1.Admin/Unknown";
        let all = Principal::insecure();
        assert!(authorise(rule_of(path), path, &all).is_err(), "denied by default");
    }
}
