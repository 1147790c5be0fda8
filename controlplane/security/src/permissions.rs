//! The one table of methods and roles.
//!
//! A call is allowed if its method stands here and its caller's role stands beside it; everything else is denied.
//! A method that is added to the API and not to this table can be called by nobody, and a test that calls every
//! method in every role says so.

use crate::principal::{Means, Principal, Role};
use std::fmt::Write;

/// Who may call a method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Everybody, known or not.
    Open,
    /// Whoever is known.
    Known,
    /// These roles.
    Roles(&'static [Role]),
    /// A machine with a join token.
    Joining,
}

/// One line of the table.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// The method, as `package.Service/Method`.
    pub method: &'static str,
    /// What it takes to call it.
    pub permission: &'static str,
    /// Who may.
    pub access: Access,
    /// Which of its calls are in the audit.
    pub recorded: Recorded,
}

/// Which calls of a method are in the audit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recorded {
    /// None: it changes nothing.
    None,
    /// All: it changes something.
    All,
    /// The denied ones: what nodes tell each other follows from calls that are recorded.
    Denied,
}

const READ: Access =
    Access::Roles(&[Role::Viewer, Role::Operator, Role::Admin, Role::Node, Role::Csi]);
const USE: Access = Access::Roles(&[Role::Operator, Role::Admin, Role::Csi]);
const OPERATE: Access = Access::Roles(&[Role::Operator, Role::Admin]);
/// Who asks for the map as a host is known to live.
const HOSTS: Access = Access::Roles(&[Role::Operator, Role::Admin, Role::Node, Role::Csi]);
const ADMIN: Access = Access::Roles(&[Role::Admin]);
/// A node that joins adds itself, and one that is asked to leave asks another one.
const MEMBERS: Access = Access::Roles(&[Role::Admin, Role::Node]);
const NODE: Access = Access::Roles(&[Role::Node]);

const fn read(method: &'static str, permission: &'static str, access: Access) -> Rule {
    Rule { method, permission, access, recorded: Recorded::None }
}

const fn change(method: &'static str, permission: &'static str, access: Access) -> Rule {
    Rule { method, permission, access, recorded: Recorded::All }
}

const fn peer(method: &'static str, permission: &'static str) -> Rule {
    Rule { method, permission, access: NODE, recorded: Recorded::Denied }
}

/// What stands in the table for the metrics: their path without its first letter.
pub const METRICS: &str = "metrics";

/// The table.
pub static TABLE: &[Rule] = &[
    change("basalt.v1.Admin/Bootstrap", "cluster.bootstrap", ADMIN),
    read("basalt.v1.Admin/GetCluster", "cluster.get", READ),
    change("basalt.v1.Admin/AddNode", "nodes.add", MEMBERS),
    change("basalt.v1.Admin/DrainNode", "nodes.drain", ADMIN),
    change("basalt.v1.Admin/RemoveNode", "nodes.remove", MEMBERS),
    change("basalt.v1.Admin/SetFailureDomain", "nodes.place", ADMIN),
    read("basalt.v1.Admin/PlanPlacement", "nodes.plan", READ),
    change("basalt.v1.Admin/StartScrub", "nodes.scrub", OPERATE),
    change("basalt.v1.Admin/CreateVolume", "volumes.create", USE),
    read("basalt.v1.Admin/GetVolume", "volumes.get", READ),
    read("basalt.v1.Admin/ExplainLatency", "volumes.explain", READ),
    read("basalt.v1.Admin/ListVolumes", "volumes.list", READ),
    change("basalt.v1.Admin/UpdateVolume", "volumes.update", USE),
    change("basalt.v1.Admin/ResizeVolume", "volumes.resize", USE),
    change("basalt.v1.Admin/FlattenVolume", "volumes.flatten", USE),
    change("basalt.v1.Admin/DeleteVolume", "volumes.delete", USE),
    change("basalt.v1.Admin/RevertVolume", "volumes.revert", OPERATE),
    change("basalt.v1.Admin/AttachVolume", "volumes.attach", USE),
    change("basalt.v1.Admin/IssueTicket", "volumes.attach", USE),
    change("basalt.v1.Admin/DetachVolume", "volumes.detach", USE),
    change("basalt.v1.Admin/CreateSnapshot", "snapshots.create", USE),
    read("basalt.v1.Admin/GetSnapshot", "snapshots.get", READ),
    read("basalt.v1.Admin/ListSnapshots", "snapshots.list", READ),
    change("basalt.v1.Admin/DeleteSnapshot", "snapshots.delete", USE),
    read("basalt.v1.Admin/ListChanges", "snapshots.diff", READ),
    change("basalt.v1.Admin/CreateCut", "cuts.create", USE),
    read("basalt.v1.Admin/GetCut", "cuts.get", READ),
    change("basalt.v1.Admin/DeleteCut", "cuts.delete", USE),
    change("basalt.v1.Encryption/IssueVolumeKey", "volumes.key", USE),
    read("basalt.v1.Encryption/GetEncryptionStatus", "encryption.get", READ),
    read("basalt.v1.Admin/GetPoolMap", "pool.get", HOSTS),
    change("basalt.v1.StorageClasses/CreateStorageClass", "classes.create", ADMIN),
    read("basalt.v1.StorageClasses/GetStorageClass", "classes.get", READ),
    read("basalt.v1.StorageClasses/ListStorageClasses", "classes.list", READ),
    change("basalt.v1.StorageClasses/UpdateStorageClass", "classes.update", ADMIN),
    change("basalt.v1.StorageClasses/DeleteStorageClass", "classes.delete", ADMIN),
    change("basalt.v1.Quotas/CreateQuota", "quotas.create", ADMIN),
    read("basalt.v1.Quotas/GetQuota", "quotas.get", READ),
    read("basalt.v1.Quotas/ListQuotas", "quotas.list", READ),
    change("basalt.v1.Quotas/UpdateQuota", "quotas.update", ADMIN),
    change("basalt.v1.Quotas/DeleteQuota", "quotas.delete", ADMIN),
    read("basalt.v1.Pools/GetPool", "pools.get", READ),
    read("basalt.v1.Pools/ListPools", "pools.list", READ),
    read("basalt.v1.Events/GetEvent", "events.get", READ),
    read("basalt.v1.Events/ListEvents", "events.list", READ),
    read("basalt.v1.Resources/Watch", "resources.watch", READ),
    // Each document needs the permission of its kind, too.
    change("basalt.v1.Resources/Apply", "resources.apply", OPERATE),
    read("google.longrunning.Operations/ListOperations", "operations.list", READ),
    read("google.longrunning.Operations/GetOperation", "operations.get", READ),
    read("google.longrunning.Operations/WaitOperation", "operations.get", READ),
    change("google.longrunning.Operations/DeleteOperation", "operations.delete", OPERATE),
    change("google.longrunning.Operations/CancelOperation", "operations.cancel", OPERATE),
    read("basalt.v1.Admin/BackupMetadata", "cluster.backup", ADMIN),
    read("basalt.v1.Recovery/GetInventory", "recovery.get", ADMIN),
    change("basalt.v1.Recovery/AdoptVolume", "recovery.adopt", ADMIN),
    change("basalt.v1.Security/CreateToken", "tokens.create", ADMIN),
    read("basalt.v1.Security/ListTokens", "tokens.list", ADMIN),
    change("basalt.v1.Security/RevokeToken", "tokens.revoke", ADMIN),
    change("basalt.v1.Security/IssueJoinToken", "nodes.invite", ADMIN),
    change("basalt.v1.Security/Admit", "nodes.join", Access::Joining),
    read("basalt.v1.Security/ListAuditRecords", "audit.list", ADMIN),
    read("basalt.v1.Security/Identify", "principal.identify", Access::Known),
    peer("basalt.v1.Peer/Describe", "peers.describe"),
    peer("basalt.v1.Peer/Join", "peers.join"),
    peer("basalt.v1.Peer/Propose", "peers.propose"),
    peer("basalt.v1.Peer/TellLatency", "peers.tell-latency"),
    peer("basalt.v1.Peer/GetReport", "peers.report"),
    peer("basalt.v1.Peer/Scrub", "peers.scrub"),
    peer("basalt.v1.Peer/Beat", "peers.beat"),
    peer("basalt.v1.Peer/GetMetadataState", "peers.state"),
    peer("basalt.v1.Peer/StateReplica", "peers.replica"),
    peer("basalt.v1.Peer/AwaitSnapshot", "peers.snapshot"),
    peer("basalt.v1.Peer/GetHeld", "peers.held"),
    // No method, but asked for at the same address.
    read(METRICS, "metrics.read", READ),
    read("grpc.health.v1.Health/Check", "health.check", Access::Open),
    read("grpc.health.v1.Health/List", "health.check", Access::Open),
    read("grpc.health.v1.Health/Watch", "health.check", Access::Open),
    read("grpc.reflection.v1.ServerReflection/ServerReflectionInfo", "api.describe", Access::Known),
    read(
        "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        "api.describe",
        Access::Known,
    ),
];

/// The line of a method, given as the path of a call: `/package.Service/Method`.
pub fn rule_of(path: &str) -> Option<&'static Rule> {
    let method = path.strip_prefix('/')?;
    TABLE.iter().find(|rule| rule.method == method)
}

impl Recorded {
    /// As the table shows it.
    pub fn word(self) -> &'static str {
        match self {
            Recorded::None => "-",
            Recorded::All => "yes",
            Recorded::Denied => "if denied",
        }
    }
}

impl Rule {
    /// Whether a known caller may.
    pub fn allows(&self, principal: &Principal) -> bool {
        match (self.access, principal.role) {
            (Access::Open, _) => true,
            _ if principal.means == Means::Insecure => true,
            (Access::Joining, _) => principal.means == Means::JoinToken,
            (Access::Known, role) => role.is_some(),
            (Access::Roles(roles), Some(role)) => roles.contains(&role),
            (Access::Roles(_), None) => false,
        }
    }

    /// Whether a role may.
    pub fn allows_role(&self, role: Role) -> bool {
        match self.access {
            Access::Open | Access::Known => true,
            Access::Roles(roles) => roles.contains(&role),
            Access::Joining => false,
        }
    }

    /// Who may beyond the roles, in a word.
    pub fn beyond_roles(&self) -> &'static str {
        match self.access {
            Access::Open => "everybody",
            Access::Joining => "join token",
            Access::Known | Access::Roles(_) => "",
        }
    }
}

/// The table as the documentation shows it.
pub fn markdown() -> String {
    let mut text = "\
# Permissions

Who may call what, as `basalt permissions` shows it. A method that is not here is denied to everybody. Calls that are
recorded, whether they were allowed or denied, are in the [audit](operations.md#audit).

| method | permission | viewer | operator | admin | node | csi | others | recorded |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
"
    .to_owned();
    for rule in TABLE {
        let roles = Role::ALL.map(|role| if rule.allows_role(role) { "yes" } else { "-" });
        let recorded = rule.recorded.word();
        let others = if rule.beyond_roles().is_empty() { "-" } else { rule.beyond_roles() };
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "| `{}` | `{}` | {} | {others} | {recorded} |",
            rule.method,
            rule.permission,
            roles.join(" | ")
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(role: Option<Role>, means: Means) -> Principal {
        Principal { name: "x".to_owned(), role, means }
    }

    #[test]
    fn what_does_not_stand_here_is_denied() {
        for path in [
            "",
            "/",
            "basalt.v1.Admin/GetCluster",
            "/basalt.v1.Admin/GetCluster/",
            "//basalt.v1.Admin/GetCluster",
            "/basalt.v1.Admin/getcluster",
            "/basalt.v1.Admin/Unknown",
        ] {
            assert!(rule_of(path).is_none(), "{path}");
        }
        assert_eq!(
            rule_of("/basalt.v1.Admin/GetCluster").expect("it stands").permission,
            "cluster.get"
        );
    }

    #[test]
    fn no_method_stands_twice() {
        let mut methods: Vec<&str> = TABLE.iter().map(|rule| rule.method).collect();
        methods.sort_unstable();
        let before = methods.len();
        methods.dedup();
        assert_eq!(methods.len(), before);
    }

    #[test]
    fn only_a_joining_machine_is_admitted_and_it_may_nothing_else() {
        let joining = with(None, Means::JoinToken);
        for rule in TABLE.iter().filter(|rule| rule.access != Access::Open) {
            let admit = rule.method == "basalt.v1.Security/Admit";
            assert_eq!(rule.allows(&joining), admit, "{}", rule.method);
            for role in Role::ALL.into_iter().filter(|_| admit) {
                assert!(!rule.allows(&with(Some(role), Means::Certificate)));
            }
        }
    }

    #[test]
    fn who_may_only_look_changes_nothing() {
        for rule in TABLE.iter().filter(|rule| rule.recorded != Recorded::None) {
            assert!(!rule.allows(&with(Some(Role::Viewer), Means::Token)), "{}", rule.method);
        }
    }

    #[test]
    fn the_documentation_has_this_table() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/permissions.md");
        let shown = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            shown == markdown(),
            "write it anew: basalt permissions --markdown > docs/permissions.md"
        );
    }
}
