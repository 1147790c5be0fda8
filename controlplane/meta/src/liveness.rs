//! Who lives: what the leader of the metadata group makes of what it hears, and of nothing else. Times are passed in.
//!
//! A node is heard in two ways: its API answers, and its data path has a link. One of the two that is silent makes it
//! suspect; only when both are for long does it count as dead. Nothing that was heard goes into the log, only what is
//! made of it, when that changes.
//!
//! Five things keep a leader from burying the living. It begins by taking everybody to have been heard at that
//! moment,
//! and begins anew when it was itself stopped for a while. It declares nobody dead while it hears less than a
//! majority: then the one that is cut off is likely itself. And a node that comes and goes has to be
//! heard for longer and longer before it counts as up again. One that said that it stops as planned has some time
//! to come back, and counts as heard at the moment at which it is known to be back.

use crate::{healing, stops};
use basalt_api::meta::v1::{EvacuateMember, JudgeMember};
use basalt_api::v1::{ClusterSpec, Member, MemberState};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// How long a node's departures count against it.
const FLAP_WINDOW: Duration = Duration::from_secs(600);
/// The longest time that a node which comes and goes has to be heard before it counts as up.
const CALM_MAX: Duration = Duration::from_secs(60);

/// When a silent node is something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thresholds {
    /// Suspect: one of the two ways is silent for so long.
    pub suspect: Duration,
    /// Dead: both are for so long. More than `suspect`.
    pub down: Duration,
    /// How long a node that said so may be away as planned.
    pub stop: Duration,
}

impl Default for Thresholds {
    /// 3, 10 and 60 s.
    fn default() -> Thresholds {
        let [suspect, down, stop] = [3, 10, 60].map(Duration::from_secs);
        Thresholds { suspect, down, stop }
    }
}

/// How a node was heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sign {
    /// Its API answered: why its device does not work, or nothing if it does.
    Api(Option<String>),
    /// There is a link of the data path to it.
    Path,
}

#[derive(Clone, Debug, Default)]
struct Signs {
    api: Option<Duration>,
    path: Option<Duration>,
    failed: Option<String>,
    /// When it was known to be back from a planned stop: what came before counts as heard.
    back: Duration,
    /// Since when it is heard in both ways without a break.
    steady: Option<Duration>,
    /// When such times ended lately.
    breaks: VecDeque<Duration>,
}

/// What a leader knows. It belongs to one term; whoever leads next begins with another one.
#[derive(Clone, Debug)]
pub struct Liveness {
    own: u32,
    thresholds: Thresholds,
    /// What came before counts as heard.
    began: Duration,
    turned: Duration,
    nodes: BTreeMap<u32, Signs>,
    /// Nodes that do not work: the entry that said so, and since when this leader knows of it.
    lost: BTreeMap<u32, (u64, Duration)>,
    /// Nodes that stop as planned: the entry that said so, and since when this leader knows of it.
    stopping: BTreeMap<u32, (u64, Duration)>,
}

impl Liveness {
    /// Of the node `own`, which leads since `now`.
    pub fn new(own: u32, thresholds: Thresholds, now: Duration) -> Liveness {
        Liveness {
            own,
            thresholds,
            began: now,
            turned: now,
            nodes: BTreeMap::new(),
            lost: BTreeMap::new(),
            stopping: BTreeMap::new(),
        }
    }

    /// A node was heard.
    pub fn hear(&mut self, node: u32, now: Duration, sign: Sign) {
        let signs = self.nodes.entry(node).or_default();
        match sign {
            Sign::Api(failed) => (signs.api, signs.failed) = (Some(now), failed),
            Sign::Path => signs.path = Some(now),
        }
    }

    /// What is to be written down now. To be asked more often than a node may be silent.
    pub fn judge(&mut self, now: Duration, spec: &ClusterSpec) -> Vec<JudgeMember> {
        if now.saturating_sub(self.turned) > self.thresholds.suspect {
            // This process did not run, so that it could hear nothing either.
            self.began = now;
            self.nodes.values_mut().for_each(|signs| signs.steady = None);
        }
        self.turned = now;
        self.nodes.retain(|node, _| spec.members.iter().any(|m| m.node == *node));
        for member in &spec.members {
            self.settle(member.node, now);
        }
        self.note_stops(now, spec);
        let sees_most = self.sees_most(now, spec);
        let verdict = |m: &Member| self.verdict(now, m, sees_most);
        spec.members.iter().filter_map(verdict).collect()
    }

    /// Whether the leader hears a majority, itself included. Nodes that were given up, and such as leave, count no
    /// more.
    pub fn sees_most(&self, now: Duration, spec: &ClusterSpec) -> bool {
        let counts = |m: &&Member| !m.leaving && !m.evacuated;
        let all = spec.members.iter().filter(counts).count();
        let heard = |m: &&Member| {
            let (api, path) = self.silences(m.node, now);
            m.node == self.own || api.min(path) < self.thresholds.suspect
        };
        let heard = spec.members.iter().filter(counts).filter(heard).count();
        2 * heard > all
    }

    /// The nodes whose groups are to be placed elsewhere by now: they have not worked for `after`, and enough others
    /// do. `now_ms` is the clock of entries. If it says that the time is over, that is believed only after this
    /// leader has known the node like that for as long as it takes to declare one dead: a clock may be wrong.
    pub fn give_up(
        &mut self,
        now: Duration,
        now_ms: i64,
        spec: &ClusterSpec,
        after: Duration,
    ) -> Vec<EvacuateMember> {
        let is_lost = |m: &&Member| is_lost(m) && !m.evacuated && !m.leaving;
        let lost: Vec<&Member> = spec.members.iter().filter(is_lost).collect();
        self.lost.retain(|node, (index, _)| {
            lost.iter().any(|m| m.node == *node && m.state_index == *index)
        });
        for member in &lost {
            self.lost.entry(member.node).or_insert((member.state_index, now));
        }
        let due = |m: &&&Member| {
            let known = now.saturating_sub(self.lost[&m.node].1);
            let told = Duration::from_millis((now_ms - m.state_since_ms).max(0) as u64);
            known >= after || (told >= after && known >= self.thresholds.down)
        };
        let entry = |m: &&Member| EvacuateMember { node: m.node, was_index: m.state_index };
        let enough = |m: &&&Member| healing::may_evacuate(spec, m.node);
        lost.iter().filter(due).filter(enough).map(entry).collect()
    }

    /// Notes who stops as planned, since when that is known, and who is back. A node says so to the cluster before this
    /// leader may have heard it itself, and its silence was planned until then.
    fn note_stops(&mut self, now: Duration, spec: &ClusterSpec) {
        let stopping: Vec<&Member> =
            spec.members.iter().filter(|m| stops::is_stopping(m)).collect();
        for member in &spec.members {
            let is_back = !stops::is_stopping(member) && !is_lost(member);
            if is_back && self.stopping.contains_key(&member.node) {
                self.nodes.entry(member.node).or_default().back = now;
            }
        }
        self.stopping.retain(|node, (index, _)| {
            stopping.iter().any(|m| m.node == *node && m.stopping_index == *index)
        });
        for member in stopping {
            self.stopping.entry(member.node).or_insert((member.stopping_index, now));
        }
    }

    /// How long the API and the data path of a node have been silent.
    fn silences(&self, node: u32, now: Duration) -> (Duration, Duration) {
        let signs = self.nodes.get(&node);
        let began = signs.map_or(self.began, |signs| self.began.max(signs.back));
        let since = |heard: Option<Duration>| now.saturating_sub(heard.unwrap_or(began).max(began));
        let api = since(signs.and_then(|signs| signs.api));
        // There is no link to oneself.
        let path = signs.and_then(|signs| signs.path);
        (api, if node == self.own { api } else { since(path) })
    }

    /// Notes whether a node is heard in both ways, and since when.
    fn settle(&mut self, node: u32, now: Duration) {
        let (api, path) = self.silences(node, now);
        let suspect = self.thresholds.suspect;
        let (own, began) = (node == self.own, self.began);
        let signs = self.nodes.entry(node).or_default();
        let began = began.max(signs.back);
        let heard = |at: Option<Duration>| at.is_some_and(|at| at >= began);
        let both = heard(signs.api) && (own || heard(signs.path));
        if both && api < suspect && path < suspect {
            signs.steady.get_or_insert(now);
        } else if signs.steady.take().is_some() {
            signs.breaks.push_back(now);
        }
        while signs.breaks.front().is_some_and(|at| now - *at > FLAP_WINDOW) {
            signs.breaks.pop_front();
        }
    }

    /// How long a node has to be heard before it counts as up.
    fn calm(&self, member: &Member, signs: &Signs) -> Duration {
        let suspect = self.thresholds.suspect;
        let grown = match signs.breaks.len() {
            0 | 1 => Duration::ZERO,
            more => suspect.saturating_mul(1 << (more - 2).min(16)).min(CALM_MAX.max(suspect)),
        };
        match member.state() {
            MemberState::Down | MemberState::Failed => grown.max(suspect),
            _ => grown,
        }
    }

    fn verdict(&self, now: Duration, member: &Member, sees_most: bool) -> Option<JudgeMember> {
        let Thresholds { suspect, down, stop } = self.thresholds;
        let signs = self.nodes.get(&member.node)?;
        let (api, path) = self.silences(member.node, now);
        let was = member.state();
        let since = self.stopping.get(&member.node).map(|(_, since)| now.saturating_sub(*since));
        // Its silence means nothing.
        let planned = since.is_some_and(|since| since < stop);
        let late = if since.is_some() { ", longer than a planned stop may take" } else { "" };
        let (state, why) = if api < suspect
            && let Some(failed) = &signs.failed
        {
            (MemberState::Failed, format!("its device does not work: {failed}"))
        } else if api.min(path) >= down && was != MemberState::Down && sees_most && !planned {
            let why = silent("neither its API nor its data path", api.min(path));
            (MemberState::Down, format!("{why}{late}"))
        } else if api.max(path) >= suspect && healing::is_up(member) && !planned {
            (MemberState::Suspect, missing(api, path, suspect))
        } else if !healing::is_up(member)
            && signs.steady.is_some_and(|since| now - since >= self.calm(member, signs))
        {
            (MemberState::Up, "it answers again".to_owned())
        } else if was == MemberState::Unspecified && signs.steady.is_some() {
            (MemberState::Up, "it answers".to_owned())
        } else {
            return None;
        };
        let (node, was_index) = (member.node, member.state_index);
        (was != state).then(|| JudgeMember { node, state: state.into(), why, was_index })
    }
}

/// Whether what a node holds is out of reach.
pub fn is_lost(member: &Member) -> bool {
    matches!(member.state(), MemberState::Down | MemberState::Failed)
}

fn missing(api: Duration, path: Duration, suspect: Duration) -> String {
    match (api >= suspect, path >= suspect) {
        (true, true) => silent("neither its API nor its data path", api.min(path)),
        (true, false) => silent("its data path answers, but not its API", api),
        _ => silent("its API answers, but not its data path", path),
    }
}

fn silent(who: &str, time: Duration) -> String {
    let seconds = time.as_secs_f64();
    match who.starts_with("neither") {
        true => format!("{who} has answered for {seconds:.1} s"),
        false => format!("{who}, for {seconds:.1} s"),
    }
}
