//! `basalt audit`.

use crate::options::{AuditCommand, Options};
use crate::{Failure, call, output};
use basalt_api::dial::{self, Cluster};
use basalt_api::v1::{AuditRecord, GetClusterRequest, ListAuditRecordsRequest};
use basalt_security::SecurityError;
use basalt_security::audit::{self, Chain, Place, Record};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::path::Path;
use tonic::Status;

const PAGE: i32 = 1000;
const PAGE_LINES: usize = 1000;

pub(crate) async fn run(
    options: &Options,
    cluster: &Cluster,
    command: &AuditCommand,
) -> Result<(), Failure> {
    match command {
        AuditCommand::List { node, limit } => list(options, cluster, node.as_deref(), *limit).await,
        AuditCommand::Verify { node, .. } => {
            let mut found = Vec::new();
            for (name, address) in nodes(cluster, node.as_deref()).await? {
                let mut verified = Verified::of(&name);
                let walked = walk(options, &address, |record| verified.take(read(&record))).await;
                if let Err(failure) = walked {
                    verified.problem.get_or_insert(format!("no answer: {}", failure.text()));
                }
                found.push(verified);
            }
            report(options, &found)
        }
    }
}

/// Looks at the records in a folder.
pub(crate) fn verify_folder(options: &Options, folder: &Path) -> Result<(), Failure> {
    let mut verified = Verified::of(&folder.display().to_string());
    let mut place = Place::default();
    loop {
        let read = audit::read(folder, place, PAGE_LINES);
        let (lines, more) = read.map_err(|e| SecurityError::File {
            path: folder.display().to_string(),
            why: e.to_string(),
        })?;
        lines.into_iter().for_each(|line| verified.take(line));
        match more {
            Some(next) => place = next,
            None => return report(options, &[verified]),
        }
    }
}

/// What the chain of one node came to.
struct Verified {
    node: String,
    records: u64,
    chain: Chain,
    problem: Option<String>,
}

impl Verified {
    fn of(node: &str) -> Verified {
        Verified { node: node.to_owned(), records: 0, chain: Chain::new(), problem: None }
    }

    fn take(&mut self, record: Option<Record>) {
        self.records += 1;
        if self.problem.is_none() {
            self.problem = self.chain.take(record.as_ref()).err();
        }
    }

    fn document(&self) -> Value {
        let last = self.chain.last();
        json!({
            "node": self.node,
            "records": self.records,
            "good_up_to": last.map(|(sequence, _)| sequence),
            "hash": last.map(|(_, hash)| hash),
            "problem": self.problem,
        })
    }
}

fn report(options: &Options, found: &[Verified]) -> Result<(), Failure> {
    let documents: Vec<Value> = found.iter().map(Verified::document).collect();
    output::write(options.output, &json!({ "nodes": documents }), || {
        let row = |one: &Verified| {
            let (sequence, hash) = one.chain.last().cloned().unwrap_or_default();
            let state = one.problem.clone().unwrap_or_else(|| "good".to_owned());
            vec![one.node.clone(), one.records.to_string(), sequence.to_string(), hash, state]
        };
        let rows: Vec<_> = found.iter().map(row).collect();
        output::table(&["NODE", "RECORDS", "GOOD UP TO", "HASH", "STATE"], &rows)
    })?;
    match found.iter().find_map(|one| Some((one, one.problem.as_ref()?))) {
        None => Ok(()),
        Some((one, problem)) => {
            let text = format!("the audit of '{}': {problem}", one.node);
            Err(Failure::Status(Status::data_loss(text)))
        }
    }
}

async fn list(
    options: &Options,
    cluster: &Cluster,
    node: Option<&str>,
    limit: usize,
) -> Result<(), Failure> {
    let mut all: Vec<(String, AuditRecord)> = Vec::new();
    for (name, address) in nodes(cluster, node).await? {
        let mut last = VecDeque::new();
        walk(options, &address, |record| {
            last.push_back(record);
            if last.len() > limit {
                last.pop_front();
            }
        })
        .await?;
        all.extend(last.into_iter().map(|record| (name.clone(), record)));
    }
    all.sort_by_key(|(_, record)| record.time_ms);
    let documents: Vec<Value> = all.iter().map(|(node, record)| document(node, record)).collect();
    output::write(options.output, &json!({ "records": documents }), || {
        let rows: Vec<_> = all.iter().map(|(node, record)| row(node, record)).collect();
        output::table(&["TIME", "NODE", "NO", "WHO", "ROLE", "WHAT", "ON", "CODE"], &rows)
    })
}

/// Names and addresses of the nodes that are asked for.
async fn nodes(cluster: &Cluster, node: Option<&str>) -> Result<Vec<(String, String)>, Failure> {
    let found = call!(cluster, get_cluster, GetClusterRequest {})?;
    let wanted = |name: &str| node.is_none_or(|wanted| wanted == name);
    let nodes = found.nodes.into_iter().filter(|node| wanted(&node.name));
    let nodes: Vec<_> = nodes.map(|node| (node.name, node.grpc_address)).collect();
    match node {
        Some(name) if nodes.is_empty() => {
            Err(Failure::Status(Status::not_found(format!("there is no node '{name}'"))))
        }
        _ => Ok(nodes),
    }
}

/// Goes through all records of the node at an address.
async fn walk(
    options: &Options,
    address: &str,
    mut take: impl FnMut(AuditRecord),
) -> Result<(), Failure> {
    let mut client = dial::security(address, options.timeout)?;
    let mut page_token = String::new();
    loop {
        let request = ListAuditRecordsRequest { page_size: PAGE, page_token };
        let page = client.list_audit_records(request).await?.into_inner();
        page.records.into_iter().for_each(&mut take);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(());
        }
    }
}

fn read(record: &AuditRecord) -> Option<Record> {
    let record = record.clone();
    (!record.damaged).then_some(Record {
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
    })
}

fn time(record: &AuditRecord) -> String {
    output::time(i64::try_from(record.time_ms).unwrap_or(i64::MAX))
}

fn row(node: &str, record: &AuditRecord) -> Vec<String> {
    if record.damaged {
        return vec!["-".to_owned(), node.to_owned(), "damaged".to_owned()]
            .into_iter()
            .chain(std::iter::repeat_n("-".to_owned(), 5))
            .collect();
    }
    let or_nobody = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
    let method = record.method.rsplit('.').next().unwrap_or_default();
    vec![
        time(record),
        node.to_owned(),
        record.sequence.to_string(),
        or_nobody(&record.principal),
        or_nobody(&record.role),
        method.to_owned(),
        or_nobody(&record.resource),
        record.code.clone(),
    ]
}

fn document(node: &str, record: &AuditRecord) -> Value {
    json!({
        "node": node,
        "damaged": record.damaged,
        "sequence": record.sequence,
        "time": time(record),
        "principal": record.principal,
        "role": record.role,
        "method": record.method,
        "resource": record.resource,
        "request_id": record.request_id,
        "code": record.code,
        "suppressed": record.suppressed,
        "previous": record.previous,
        "hash": record.hash,
    })
}
