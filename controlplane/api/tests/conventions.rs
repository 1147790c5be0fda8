//! Holds every service, method, message and field of the API to its conventions (google.aip.dev), by their
//! descriptors. What deviates stands in a list with its reason; a deviation that is none any more has to leave it.

use basalt_api::error::code_of;
use basalt_api::reflect::pool;
use basalt_api::v1::ErrorReason;
use prost_reflect::{
    Cardinality, FieldDescriptor, FileDescriptor, Kind, MessageDescriptor, MethodDescriptor,
    ServiceDescriptor,
};
use std::collections::{BTreeMap, BTreeSet};

/// Changes that name no request id, and why they need none.
const WITHOUT_REQUEST_ID: [(&str, &str); 11] = [
    ("Bootstrap", "the list of nodes names it: the same again goes on"),
    ("AddNode", "the node's address names it: the same again goes on"),
    ("DrainNode", "a state that is wanted: the same again is done"),
    ("RemoveNode", "a state that is wanted: the same again is done"),
    ("StartScrub", "one that is under way begins anew"),
    ("IssueJoinToken", "nothing is kept of it: another one is as good"),
    ("IssueTicket", "nothing is kept of it: another one is as good"),
    ("Admit", "its token names it, and counts once"),
    ("IssueVolumeKey", "nothing is changed by it: only who asked is recorded"),
    ("CancelOperation", "of google.longrunning"),
    ("DeleteOperation", "of google.longrunning"),
];

/// Verbs of methods that change nothing.
const READS: [&str; 8] = ["Backup", "Explain", "Get", "Identify", "List", "Plan", "Wait", "Watch"];

/// Resources that are created in a way of their own, and why.
const NO_STANDARD_CREATE: [(&str, &str); 1] = [("Cut", "it is named by its number")];

/// Fields that hold a time as a number, from before there were others.
const TIMES_AS_NUMBERS: [&str; 2] =
    ["basalt.v1.Volume.create_time_ms", "basalt.v1.Snapshot.create_time_ms"];

/// What there is one of.
const SINGLE: [&str; 4] = ["Cluster", "EncryptionStatus", "Inventory", "PoolMap"];

fn services() -> Vec<ServiceDescriptor> {
    // What nodes ask of each other is no API for users.
    pool().services().filter(|service| service.full_name() != "basalt.v1.Peer").collect()
}

fn methods() -> Vec<MethodDescriptor> {
    services().iter().flat_map(|service| service.methods().collect::<Vec<_>>()).collect()
}

/// What a method with a verb is about.
fn named(method: &MethodDescriptor, verb: &str) -> Option<String> {
    let rest = method.name().strip_prefix(verb)?;
    rest.starts_with(char::is_uppercase).then(|| rest.to_owned())
}

fn is_ours(file: &FileDescriptor) -> bool {
    file.package_name() == "basalt.v1" && file.name() != "basalt/v1/node.proto"
}

fn messages() -> impl Iterator<Item = MessageDescriptor> {
    pool().all_messages().filter(|m| is_ours(&m.parent_file()) && !m.is_map_entry())
}

fn comment(file: &FileDescriptor, path: &[i32]) -> String {
    let info = file.file_descriptor_proto().source_code_info.as_ref().expect("compiled with it");
    let found = info.location.iter().find(|location| location.path == path);
    found.map_or_else(String::new, |location| location.leading_comments().to_owned())
}

fn field(message: &MessageDescriptor, name: &str) -> Option<FieldDescriptor> {
    message.get_field_by_name(name)
}

fn has(message: &MessageDescriptor, name: &str, kind: &Kind) -> bool {
    field(message, name).is_some_and(|field| field.kind() == *kind)
}

fn begins_with_name(message: &MessageDescriptor) -> bool {
    field(message, "name").is_some_and(|f| f.kind() == Kind::String && f.number() == 1)
}

fn is_message(field: Option<FieldDescriptor>, full_name: &str) -> bool {
    field.is_some_and(|f| matches!(f.kind(), Kind::Message(m) if m.full_name() == full_name))
}

fn snake(name: &str) -> String {
    let mut text = String::new();
    for (at, letter) in name.char_indices() {
        if letter.is_ascii_uppercase() && at > 0 {
            text.push('_');
        }
        text.push(letter.to_ascii_lowercase());
    }
    text
}

/// Fails with the offences against a rule, all at once.
fn none(rule: &str, offences: impl IntoIterator<Item = String>) {
    let offences: Vec<String> = offences.into_iter().collect();
    assert!(offences.is_empty(), "{rule}:\n  {}", offences.join("\n  "));
}

#[test]
fn everything_is_explained() {
    let mut offences = Vec::new();
    for service in services() {
        let file = service.parent_file();
        if comment(&file, service.path()).is_empty() {
            offences.push(service.full_name().to_owned());
        }
        let bare = service.methods().filter(|method| comment(&file, method.path()).is_empty());
        offences.extend(bare.map(|method| method.full_name().to_owned()));
    }
    for message in messages() {
        // Requests and answers are explained by their methods.
        let by_method = ["Request", "Response"].iter().any(|end| message.name().ends_with(end));
        if !by_method && comment(&message.parent_file(), message.path()).is_empty() {
            offences.push(message.full_name().to_owned());
        }
    }
    none("every service, method and resource has a comment", offences);
}

#[test]
fn fields_are_named_alike() {
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let is_good = |name: &str| name.chars().all(good) && !name.contains("__");
    let offences = messages().flat_map(|message| {
        let bad = message.fields().filter(|field| !is_good(field.name()));
        bad.map(|field| field.full_name().to_owned()).collect::<Vec<_>>()
    });
    none("fields are in snake_case (AIP-140)", offences);
}

#[test]
fn enums_begin_with_nothing_and_their_own_name() {
    let mut offences = Vec::new();
    for one in pool().all_enums().filter(|one| is_ours(&one.parent_file())) {
        let first = one.values().find(|value| value.number() == 0);
        if !first.is_some_and(|value| value.name().ends_with("_UNSPECIFIED")) {
            offences.push(format!("{} has no _UNSPECIFIED at 0", one.full_name()));
        }
        let prefix = format!("{}_", snake(one.name()).to_ascii_uppercase());
        let others = one.values().filter(|value| !value.name().starts_with(&prefix));
        offences.extend(others.map(|v| format!("{} does not begin with {prefix}", v.full_name())));
    }
    none("enums (AIP-126)", offences);
}

#[test]
fn times_and_sizes_say_what_they_are_in() {
    let mut known: BTreeSet<&str> = TIMES_AS_NUMBERS.into();
    let mut offences = Vec::new();
    for message in messages() {
        for field in message.fields() {
            let is = |end: &str| field.name().ends_with(end);
            let time = is_message(Some(field.clone()), "google.protobuf.Timestamp");
            if time != is("_time") && !known.remove(field.full_name()) {
                offences.push(format!("{} and google.protobuf.Timestamp", field.full_name()));
            }
            if is("_time_ms") && !TIMES_AS_NUMBERS.contains(&field.full_name()) {
                offences.push(format!("{} is no google.protobuf.Timestamp", field.full_name()));
            }
            known.remove(field.full_name());
            if is("size") && !is("page_size") {
                offences.push(format!("{} does not say in what", field.full_name()));
            }
        }
    }
    offences.extend(known.into_iter().map(|name| format!("{name} deviates no more")));
    none("times and sizes (AIP-141, AIP-142)", offences);
}

#[test]
fn get_takes_a_name() {
    let offences = methods().into_iter().filter_map(|method| {
        let resource = named(&method, "Get")?;
        let request = method.input();
        let by_name = begins_with_name(&request) && request.fields().len() == 1;
        let single = SINGLE.contains(&resource.as_str());
        let good = (by_name || single) && method.output().name() == resource;
        (!good || method.is_server_streaming()).then(|| method.full_name().to_owned())
    });
    none("Get takes a name and gives the resource (AIP-131)", offences);
}

#[test]
fn list_has_pages() {
    let offences = methods().into_iter().filter_map(|method| {
        named(&method, "List")?;
        // What it lists may be more than memory holds.
        if method.name() == "ListChanges" {
            return (!method.is_server_streaming()).then(|| method.full_name().to_owned());
        }
        let (request, response) = (method.input(), method.output());
        let asks = has(&request, "page_size", &Kind::Int32);
        let asks = asks && has(&request, "page_token", &Kind::String);
        let first = response.fields().min_by_key(FieldDescriptor::number);
        let gives = first.is_some_and(|field| field.cardinality() == Cardinality::Repeated);
        let gives = gives && has(&response, "next_page_token", &Kind::String);
        (!asks || !gives).then(|| method.full_name().to_owned())
    });
    none("List has page_size, page_token and next_page_token (AIP-132, AIP-158)", offences);
}

#[test]
fn create_takes_an_id_and_gives_the_resource() {
    let mut without: BTreeMap<&str, &str> = NO_STANDARD_CREATE.into();
    let mut offences = Vec::new();
    for method in methods() {
        let Some(resource) = named(&method, "Create") else { continue };
        let id = format!("{}_id", snake(&resource));
        let deviates = without.remove(resource.as_str()).is_some();
        if has(&method.input(), &id, &Kind::String) == deviates {
            offences.push(format!("{} and its {id}", method.full_name()));
        }
        if method.output().name() != resource {
            offences.push(format!("{} gives no {resource}", method.full_name()));
        }
    }
    offences.extend(without.into_keys().map(|name| format!("there is no Create{name}")));
    none("Create takes an id and gives the resource (AIP-133)", offences);
}

#[test]
fn update_takes_a_mask() {
    let mut updated = 0;
    let mut offences = Vec::new();
    for method in methods() {
        let Some(resource) = named(&method, "Update") else { continue };
        updated += 1;
        let request = method.input();
        let output = method.output();
        let takes = is_message(field(&request, &snake(&resource)), output.full_name());
        let mask = is_message(field(&request, "update_mask"), "google.protobuf.FieldMask");
        let validates = has(&request, "validate_only", &Kind::Bool);
        if !takes || !mask || !validates || output.name() != resource {
            offences.push(method.full_name().to_owned());
        }
    }
    assert!(updated >= 3, "only {updated} methods are looked at");
    none("Update takes the resource, a mask and validate_only (AIP-134, AIP-163)", offences);
}

#[test]
fn delete_takes_a_name_and_an_etag() {
    let offences = methods().into_iter().filter_map(|method| {
        let resource = named(&method, "Delete")?;
        let request = method.input();
        // Operations end and cuts are made once: neither changes in between.
        let constant = ["Operation", "Cut"].contains(&resource.as_str());
        let etag = constant || has(&request, "etag", &Kind::String);
        (!begins_with_name(&request) || !etag).then(|| method.full_name().to_owned())
    });
    none("Delete takes a name and an etag (AIP-135, AIP-154)", offences);
}

#[test]
fn a_change_can_be_sent_twice() {
    let mut without: BTreeMap<&str, &str> = WITHOUT_REQUEST_ID.into();
    let mut offences = Vec::new();
    for method in methods() {
        let is_verb = |verb: &str| method.name() == verb || named(&method, verb).is_some();
        if READS.iter().any(|verb| is_verb(verb)) {
            continue;
        }
        let excused = without.remove(method.name()).is_some();
        if has(&method.input(), "request_id", &Kind::String) == excused {
            offences.push(format!("{} and its request_id", method.full_name()));
        }
    }
    offences.extend(without.into_keys().map(|name| format!("there is no {name}")));
    none("a change has a request_id (AIP-155)", offences);
}

#[test]
fn a_resource_begins_with_its_name() {
    let all = methods();
    let updated = |name: &str| all.iter().any(|m| named(m, "Update").as_deref() == Some(name));
    let mut offences = Vec::new();
    for method in &all {
        let Some(resource) = named(method, "Get") else { continue };
        let message = method.output();
        if !SINGLE.contains(&resource.as_str()) && !begins_with_name(&message) {
            offences.push(format!("{} has no name at 1", message.full_name()));
        }
        if updated(message.name()) && !has(&message, "etag", &Kind::String) {
            offences.push(format!("{} has no etag", message.full_name()));
        }
    }
    none("a resource has a name, and an etag if it changes (AIP-122, AIP-154)", offences);
}

#[test]
fn every_reason_says_its_code() {
    let reasons = pool().get_enum_by_name("basalt.v1.ErrorReason").expect("there");
    let file = reasons.parent_file();
    let offences = reasons.values().filter(|value| value.number() != 0).filter_map(|value| {
        let reason = ErrorReason::try_from(value.number()).expect("generated from it");
        let code = snake(&format!("{:?}", code_of(reason))).to_ascii_uppercase();
        let said = comment(&file, value.path());
        (!said.contains(&format!("{code}."))).then(|| format!("{} is {code}", value.name()))
    });
    none("the comment of a reason names the code that it comes with (AIP-193)", offences);
}
