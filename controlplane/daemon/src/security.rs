//! Tokens, machines that join, and the records of what was asked.

use crate::access::caller;
use crate::daemon::Daemon;
use crate::metadata::now_ms;
use crate::services::paging::{Page, bad_token};
use crate::services::shown::moment;
use crate::services::{change, id_in, linearized, unexpected};
use basalt_api::error;
use basalt_api::v1::security_server::Security;
use basalt_api::v1::{
    self, AdmitRequest, AdmitResponse, AuditRecord, CreateTokenRequest, ErrorReason,
    IdentifyRequest, IssueJoinTokenRequest, IssueJoinTokenResponse, ListAuditRecordsRequest,
    ListAuditRecordsResponse, ListTokensRequest, ListTokensResponse, RevokeTokenRequest, Token,
};
use basalt_meta::{CreateToken, Op, Outcome, RevokeToken, TokenRecord, UseJoinToken};
use basalt_security::Secrets;
use basalt_security::audit::{self, Place, Record};
use basalt_security::join::JoinToken;
use basalt_security::principal::Means;
use std::sync::Arc;
use tonic::{Request, Response, Status};

const PREFIX: &str = "tokens/";
/// The longest time for which a join token holds: a day.
const JOIN_TTL_MAX_S: u64 = 86_400;

/// The service.
pub struct SecurityService {
    daemon: Arc<Daemon>,
}

impl SecurityService {
    /// Of this node.
    pub fn new(daemon: Arc<Daemon>) -> SecurityService {
        SecurityService { daemon }
    }

    async fn change_token(&self, request_id: &str, op: Op) -> Result<Response<Token>, Status> {
        match change(&self.daemon, request_id, op).await? {
            Outcome::Token(token) => Ok(Response::new(shown(&token))),
            other => Err(unexpected(&other)),
        }
    }

    fn secrets(&self) -> Result<Secrets, Status> {
        let keyring = self.daemon.keyring.as_ref();
        keyring.and_then(|keyring| keyring.secrets()).ok_or_else(|| {
            let message = "this node was started without a secret (--insecure): there is nothing that \
                           a machine could be given";
            error::status(ErrorReason::PermissionDenied, message, &[])
        })
    }
}

#[tonic::async_trait]
impl Security for SecurityService {
    async fn create_token(
        &self,
        request: Request<CreateTokenRequest>,
    ) -> Result<Response<Token>, Status> {
        let creator = caller(&request).to_string();
        let request = request.into_inner();
        let op = Op::CreateToken(CreateToken {
            id: request.token_id,
            role: request.role,
            sha256: request.sha256,
            ttl_ms: request.ttl_seconds.saturating_mul(1000),
            creator,
        });
        self.change_token(&request.request_id, op).await
    }

    async fn list_tokens(
        &self,
        request: Request<ListTokensRequest>,
    ) -> Result<Response<ListTokensResponse>, Status> {
        let request = request.into_inner();
        let page = Page::asked(request.page_size, &request.page_token, &[])?;
        let after = page.after.clone().unwrap_or_default();
        let metadata = linearized(&self.daemon).await?;
        let mut tokens: Vec<TokenRecord> = metadata
            .look(|state| state.tokens_after(&after).take(page.size + 1).cloned().collect());
        let next_page_token = page.cut(&mut tokens, |token| token.id.clone());
        let tokens = tokens.iter().map(shown).collect();
        Ok(Response::new(ListTokensResponse { tokens, next_page_token }))
    }

    async fn revoke_token(
        &self,
        request: Request<RevokeTokenRequest>,
    ) -> Result<Response<Token>, Status> {
        let request = request.into_inner();
        let op = Op::RevokeToken(RevokeToken { id: id_in("tokens", &request.name)?.to_owned() });
        self.change_token(&request.request_id, op).await
    }

    async fn issue_join_token(
        &self,
        request: Request<IssueJoinTokenRequest>,
    ) -> Result<Response<IssueJoinTokenResponse>, Status> {
        let seconds = request.into_inner().ttl_seconds;
        if !(1..=JOIN_TTL_MAX_S).contains(&seconds) {
            let message = "a join token holds for one second to one day";
            return Err(error::invalid("ttl_seconds", message));
        }
        // A node that belongs to no cluster can not remember which tokens were used.
        self.daemon.engine()?;
        let expires_ms = now_ms().saturating_add(seconds as i64 * 1000);
        let until = u64::try_from(expires_ms).unwrap_or(0);
        let token = JoinToken::create(&self.secrets()?, until)
            .map_err(|problem| Status::internal(problem.to_string()))?;
        Ok(Response::new(IssueJoinTokenResponse {
            join_token: token.text(),
            expire_time: moment(expires_ms),
        }))
    }

    async fn admit(
        &self,
        request: Request<AdmitRequest>,
    ) -> Result<Response<AdmitResponse>, Status> {
        let secrets = self.secrets()?;
        let joining = caller(&request);
        // Before the secret is given: of two machines with one token only one may get it.
        let op = Op::UseJoinToken(UseJoinToken { id: joining.name.clone() });
        change(&self.daemon, "", op).await?;
        tracing::info!(token = joining.name, "a machine was given the cluster's secret");
        Ok(Response::new(AdmitResponse { secrets: secrets.text() }))
    }

    async fn list_audit_records(
        &self,
        request: Request<ListAuditRecordsRequest>,
    ) -> Result<Response<ListAuditRecordsResponse>, Status> {
        let request = request.into_inner();
        let page = Page::asked(request.page_size, &request.page_token, &[])?;
        let from = match page.after.as_deref() {
            None => Place::default(),
            Some(text) => place_of(text).ok_or_else(bad_token)?,
        };
        let size = page.size;
        let folder = self.daemon.recorder.folder().to_owned();
        let read = tokio::task::spawn_blocking(move || audit::read(&folder, from, size)).await;
        let (lines, more) = read
            .map_err(|e| Status::internal(e.to_string()))?
            .map_err(|e| Status::internal(format!("the records can not be read: {e}")))?;
        let next_page_token = more
            .map_or_else(String::new, |at| page.token_after(&format!("{}.{}", at.file, at.offset)));
        let records = lines.into_iter().map(record).collect();
        let node = self.daemon.name().to_owned();
        Ok(Response::new(ListAuditRecordsResponse { records, next_page_token, node }))
    }

    async fn identify(
        &self,
        request: Request<IdentifyRequest>,
    ) -> Result<Response<v1::Principal>, Status> {
        let who = caller(&request);
        let means = match who.means {
            Means::Certificate => "certificate",
            Means::Token => "token",
            Means::JoinToken => "join-token",
            Means::Insecure => "insecure",
        };
        let role = who.role.map(|role| role.to_string()).unwrap_or_default();
        Ok(Response::new(v1::Principal { name: who.name, role, means: means.to_owned() }))
    }
}

fn shown(token: &TokenRecord) -> Token {
    Token {
        name: format!("{PREFIX}{}", token.id),
        role: token.role.clone(),
        creator: token.creator.clone(),
        create_time: moment(token.create_time_ms),
        expire_time: moment(token.expires_ms),
    }
}

fn place_of(text: &str) -> Option<Place> {
    let (file, offset) = text.split_once('.')?;
    Some(Place { file: file.parse().ok()?, offset: offset.parse().ok()? })
}

fn record(line: Option<Record>) -> AuditRecord {
    let Some(record) = line else {
        return AuditRecord { damaged: true, ..AuditRecord::default() };
    };
    AuditRecord {
        sequence: record.sequence,
        time_ms: record.time_ms,
        principal: record.principal,
        role: record.role,
        method: record.method,
        resource: record.resource,
        request_id: record.request_id,
        code: record.code,
        suppressed: record.suppressed,
        previous: record.previous,
        hash: record.hash,
        damaged: false,
    }
}
