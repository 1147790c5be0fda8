//! `basalt token` and `basalt node token`.

use crate::get::moment;
use crate::options::{Format, Options, TokenCommand};
use crate::{Failure, output};
use basalt_api::dial::Cluster;
use basalt_api::random::request_id;
use basalt_api::v1::security_client::SecurityClient;
use basalt_api::v1::{
    CreateTokenRequest, IssueJoinTokenRequest, ListTokensRequest, RevokeTokenRequest, Token,
};
use basalt_security::token;
use serde_json::{Value, json};
use std::time::Duration;

const PAGE: i32 = 1000;

/// Makes a call of the service of tokens and records.
macro_rules! ask {
    ($cluster:expr, $method:ident, $request:expr) => {{
        let request = $request;
        let request = &request;
        $cluster
            .call_through(|channel| {
                let request = request.clone();
                async move { SecurityClient::new(channel).$method(request).await }
            })
            .await
    }};
}

pub(crate) async fn run(
    options: &Options,
    cluster: &Cluster,
    command: &TokenCommand,
) -> Result<(), Failure> {
    match command {
        TokenCommand::Create { name, role, ttl } => {
            let text = token::create();
            let request = CreateTokenRequest {
                token_id: name.clone(),
                role: role.to_string(),
                sha256: token::digest(&text)?.to_vec(),
                ttl_seconds: ttl.as_secs(),
                request_id: request_id("token"),
            };
            let made = ask!(cluster, create_token, request)?;
            // For people too the token alone, so that it can go straight into a file.
            let mut document = document(&made);
            document["token"] = json!(text);
            output::write(options.output, &document, || text.clone())
        }
        TokenCommand::List => list(options.output, cluster).await,
        TokenCommand::Revoke { name } => {
            let name = format!("tokens/{name}");
            let request = RevokeTokenRequest { name, request_id: request_id("token") };
            let gone = ask!(cluster, revoke_token, request)?;
            output::write(options.output, &document(&gone), || {
                format!("'{}' is revoked", id_of(&gone))
            })
        }
    }
}

async fn list(format: Format, cluster: &Cluster) -> Result<(), Failure> {
    let (mut all, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = ListTokensRequest { page_size: PAGE, page_token };
        let page = ask!(cluster, list_tokens, request)?;
        all.extend(page.tokens);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    let documents = json!({ "tokens": all.iter().map(document).collect::<Vec<_>>() });
    output::write(format, &documents, || {
        let row = |token: &Token| {
            let until = moment(token.expire_time.as_ref());
            vec![id_of(token).to_owned(), token.role.clone(), until, token.creator.clone()]
        };
        let rows: Vec<_> = all.iter().map(row).collect();
        output::table(&["NAME", "ROLE", "UNTIL", "CREATED BY"], &rows)
    })
}

/// `basalt node token`.
pub(crate) async fn join(
    options: &Options,
    cluster: &Cluster,
    ttl: Duration,
) -> Result<(), Failure> {
    let request = IssueJoinTokenRequest { ttl_seconds: ttl.as_secs() };
    let made = ask!(cluster, issue_join_token, request)?;
    let until = moment(made.expire_time.as_ref());
    let document = json!({ "join_token": made.join_token, "expire_time": until });
    output::write(options.output, &document, || made.join_token.clone())
}

fn id_of(token: &Token) -> &str {
    token.name.strip_prefix("tokens/").unwrap_or(&token.name)
}

fn document(token: &Token) -> Value {
    json!({
        "name": id_of(token),
        "role": token.role,
        "creator": token.creator,
        "create_time": moment(token.create_time.as_ref()),
        "expire_time": moment(token.expire_time.as_ref()),
    })
}
