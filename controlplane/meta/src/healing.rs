//! What is made of nodes that fail: members that are judged, given up, and lose what is attached to them.
//!
//! The leader of the metadata group judges by what it hears, see [`crate::liveness`]; here is what it has the others
//! agree on. Each entry names what its proposer had seen, so that one that comes late changes nothing.

use crate::layout;
use crate::liveness::is_lost;
use crate::state::{MetaState, Outcome, Refused, find, refusal};
use basalt_api::meta::v1::entry::Op;
use basalt_api::meta::v1::{
    AttachVolume, AttachmentRecord, EvacuateMember, FailOverVolume, JudgeAttachment, JudgeMember,
    SetFailureDomain,
};
use basalt_api::v1::event::Severity;
use basalt_api::v1::{
    ClusterSpec, ErrorReason, Failover, FailureDomain, Location, Member, MemberState,
};

/// What the names of failure domains begin with.
const DOMAIN: &str = "FAILURE_DOMAIN_";
/// The longest reason that is kept, in bytes.
const WHY_MAX: usize = 512;
/// The longest part of a location, in bytes.
const LOCATION_MAX: usize = 63;

/// Whether a member counts as dead.
pub fn is_down(member: &Member) -> bool {
    member.state() == MemberState::Down
}

/// Whether a member is as it should be, or was never judged.
pub fn is_up(member: &Member) -> bool {
    matches!(member.state(), MemberState::Up | MemberState::Unspecified)
}

/// How many other nodes than this one work and may get groups.
fn others(spec: &ClusterSpec, node: u32) -> usize {
    let works = |m: &&Member| m.node != node && layout::is_active(m) && is_up(m);
    spec.members.iter().filter(works).count()
}

/// Whether enough others are there to get all replicas of a node.
pub fn may_evacuate(spec: &ClusterSpec, node: u32) -> bool {
    others(spec, node) >= crate::members::replicas(spec)
}

/// What a node tells of itself, with what the record makes of it: whether it is drained, leaves, lives.
pub fn with_record_of(known: &Member, told: Member) -> Member {
    Member {
        draining: known.draining,
        leaving: known.leaving,
        state: known.state,
        state_since_ms: known.state_since_ms,
        state_why: known.state_why.clone(),
        state_index: known.state_index,
        evacuated: known.evacuated,
        stopping_index: known.stopping_index,
        stopping_since_ms: known.stopping_since_ms,
        ..told
    }
}

/// Whether a location can be kept.
///
/// # Errors
/// Says what is wrong with it.
pub fn check_location(location: &Location) -> Result<(), String> {
    let Location { region, zone, rack } = location;
    for (part, text) in [("region", region), ("zone", zone), ("rack", rack)] {
        let fits = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if text.len() > LOCATION_MAX || !text.chars().all(fits) {
            return Err(format!(
                "'{}' is no {part}: give at most {LOCATION_MAX} of a-z, A-Z, 0-9, '-', '_' and '.'",
                text.escape_debug()
            ));
        }
    }
    Ok(())
}

impl MetaState {
    /// Whether a host is a node that counts as dead: what is attached to it may be attached elsewhere. The epoch
    /// sees to it that nothing of the former session lands, should it live after all.
    pub fn is_lost(&self, host: &str) -> bool {
        let named = |m: &&Member| m.name == host && !m.leaving;
        let members = || self.cluster().into_iter().flat_map(|spec| &spec.members);
        let staying = members().find(named);
        staying.or_else(|| members().find(|m| m.name == host)).is_some_and(is_down)
    }

    /// Whether an attachment may be taken from its host without a word from there.
    pub(crate) fn may_take(&self, current: Option<&AttachmentRecord>) -> bool {
        current.is_some_and(|attachment| {
            self.is_lost(&attachment.host) || attachment.host_state() == MemberState::Down
        })
    }

    fn judged(&mut self, node: u32, was_index: u64) -> Result<&mut Member, Refused> {
        let spec = self.spec()?;
        let Some(member) = spec.members.iter_mut().find(|m| m.node == node) else {
            return Err(crate::members::not_found(node));
        };
        if member.state_index != was_index {
            let message = format!("what is known of the node '{}' has changed since", member.name);
            return Err(refusal(
                ErrorReason::MemberChanged,
                message,
                vec![("node", member.name.clone())],
            ));
        }
        Ok(member)
    }

    /// A node lives, or does not.
    pub(crate) fn judge_member(
        &mut self,
        index: u64,
        now_ms: i64,
        judge: JudgeMember,
    ) -> Result<Outcome, Refused> {
        let state = judge.state();
        if state == MemberState::Unspecified || judge.why.len() > WHY_MAX {
            let message = "a node is judged without a state, or for too many reasons".to_owned();
            return Err(refusal(
                ErrorReason::InvalidField,
                message,
                vec![("field", "state".to_owned())],
            ));
        }
        let member = self.judged(judge.node, judge.was_index)?;
        if member.state() != state {
            member.state = state.into();
            member.state_since_ms = now_ms;
            member.state_index = index;
            member.evacuated &= state != MemberState::Up;
        }
        member.state_why = judge.why;
        crate::stops::judged(member);
        let member = member.clone();
        self.member_revisions.insert(member.name.clone(), index);
        Ok(Outcome::Member(member))
    }

    /// What is told of a change of the living and the dead: how bad it is, its reason, its target, and a sentence.
    pub(crate) fn told_of(
        &self,
        index: u64,
        op: &Op,
        outcome: &Outcome,
    ) -> Option<(Severity, &'static str, String, String)> {
        match (op, outcome) {
            (Op::JudgeMember(_), Outcome::Member(m)) if m.state_index == index => {
                let (severity, reason) = match m.state() {
                    MemberState::Up => (Severity::Info, "NODE_UP"),
                    MemberState::Suspect => (Severity::Warning, "NODE_SUSPECT"),
                    MemberState::Failed => (Severity::Error, "NODE_FAILED"),
                    _ => (Severity::Error, "NODE_DOWN"),
                };
                Some((severity, reason, format!("nodes/{}", m.name), m.state_why.clone()))
            }
            (Op::PlanStop(plan), Outcome::Member(m)) => Some(crate::stops::told(plan, m)),
            (Op::SetFailureDomain(set), Outcome::Nothing) => {
                let domain = set.failure_domain().as_str_name().trim_start_matches(DOMAIN);
                let domain = domain.to_ascii_lowercase();
                let message = format!("replicas are kept apart by {domain} from now on");
                Some((Severity::Info, "FAILURE_DOMAIN_SET", "cluster".to_owned(), message))
            }
            (Op::EvacuateMember(_), Outcome::Member(m)) => {
                let message = "lost for long: its groups are placed on other nodes".to_owned();
                Some((Severity::Warning, "NODE_GIVEN_UP", format!("nodes/{}", m.name), message))
            }
            (Op::JudgeAttachment(judge), Outcome::Nothing)
                if judge.state() == MemberState::Down =>
            {
                let volume = self.volume(&judge.id);
                let host = &volume?.attachment.as_ref()?.host;
                let message = format!("its host '{host}' is not heard any more");
                let target = format!("volumes/{}", judge.id);
                Some((Severity::Warning, "VOLUME_HOST_LOST", target, message))
            }
            _ => None,
        }
    }

    /// A node that is down for long gives its groups up.
    pub(crate) fn evacuate_member(
        &mut self,
        index: u64,
        evacuate: &EvacuateMember,
    ) -> Result<Outcome, Refused> {
        let (enough, others) =
            (may_evacuate(self.spec()?, evacuate.node), others(self.spec()?, evacuate.node));
        let member = self.judged(evacuate.node, evacuate.was_index)?;
        if !is_lost(member) {
            let message = format!("the node '{}' is not down", member.name);
            let facts = vec![("node", member.name.clone())];
            return Err(refusal(ErrorReason::MemberChanged, message, facts));
        }
        if !enough {
            return Err(crate::members::too_few(member, others + 1));
        }
        member.evacuated = true;
        let member = member.clone();
        self.member_revisions.insert(member.name.clone(), index);
        Ok(Outcome::Member(member))
    }

    /// A volume whose node is down goes to another one, if it is still so.
    pub(crate) fn fail_over_volume(
        &mut self,
        index: u64,
        now_ms: i64,
        over: FailOverVolume,
    ) -> Result<Outcome, Refused> {
        let changed = |message: String| {
            let facts = vec![("volume", over.id.clone())];
            Err(refusal(ErrorReason::AttachmentChanged, message, facts))
        };
        let volume = find(&mut self.volumes, &over.id)?.clone();
        if volume.failover() != Failover::Node {
            return changed(format!("the volume '{}' stays where it is attached", over.id));
        }
        let current = volume.attachment.as_ref();
        let other = current.is_none_or(|now| now.epoch != over.epoch);
        // What is attached to a host that is no node is used there.
        if other || !current.is_some_and(|now| self.is_lost(&now.host)) {
            return changed(format!(
                "the attachment of the volume '{}' is another one by now, or its node is back",
                over.id
            ));
        }
        let members = self.spec()?.members.iter();
        let Some(target) = members.clone().find(|m| m.node == over.node && takes_volumes(m)) else {
            return changed(format!("node {} can not take the volume '{}'", over.node, over.id));
        };
        let attach = AttachVolume {
            id: over.id.clone(),
            host: target.name.clone(),
            r#move: true,
            expected_epoch: over.epoch,
            ..AttachVolume::default()
        };
        self.attach_volume(index, now_ms, attach)
    }

    /// The host of an attachment, which is no node, lives or does not.
    pub(crate) fn judge_attachment(
        &mut self,
        now_ms: i64,
        judge: &JudgeAttachment,
    ) -> Result<Outcome, Refused> {
        let known = matches!(judge.state(), MemberState::Up | MemberState::Down);
        let mut volume = find(&mut self.volumes, &judge.id)?;
        let attachment = volume.attachment.as_mut();
        let Some(attachment) = attachment.filter(|now| known && now.epoch == judge.epoch) else {
            let message = format!("the attachment of the volume '{}' is another one", judge.id);
            let facts = vec![("volume", judge.id.clone())];
            return Err(refusal(ErrorReason::AttachmentChanged, message, facts));
        };
        if attachment.host_state() != judge.state() {
            attachment.host_state = judge.state;
            attachment.host_state_since_ms = now_ms;
        }
        Ok(Outcome::Nothing)
    }

    /// Says what replicas are kept apart by.
    pub(crate) fn set_failure_domain(
        &mut self,
        set: &SetFailureDomain,
    ) -> Result<Outcome, Refused> {
        let domain = set.failure_domain();
        if domain == FailureDomain::Unspecified {
            let message = "no failure domain is given: host, rack, zone or region".to_owned();
            let facts = vec![("field", "failure_domain".to_owned())];
            return Err(refusal(ErrorReason::InvalidField, message, facts));
        }
        self.spec()?.failure_domain = domain.into();
        Ok(Outcome::Nothing)
    }
}

/// Whether volumes may be given to a node that it is not asked for.
pub(crate) fn takes_volumes(member: &Member) -> bool {
    is_up(member) && layout::is_active(member) && !member.nbd_address.is_empty()
}
