//! Snapshots of several volumes at one point in time: a view of each volume, all led by one [`Cut`].

use super::{CHANGE_TAG, Core, end_session};
use crate::door::exports::{NewExport, Purpose};
use crate::door::{DoorError, Host, Reply};
use basalt_client::{BlockError, BlockResult, ClientEvent, Cut, CutEnd, VolumeConfig};
use basalt_wire::time::Time;
use std::collections::BTreeMap;

/// The cuts that are under way, by number.
#[derive(Default)]
pub(super) struct Cuts {
    all: BTreeMap<u64, UnderWay>,
    last: u64,
}

struct UnderWay {
    cut: Cut,
    /// The views, in the order of the cut's volumes.
    exports: Vec<u64>,
    told: Reply<()>,
}

impl Cuts {
    pub(super) fn deadline(&self) -> Option<Time> {
        self.all.values().filter_map(|one| one.cut.deadline()).min()
    }
}

impl Core {
    /// Begins a cut of volumes, each in its configuration's generation.
    pub(super) fn begin_cut<H: Host>(
        &mut self,
        now: Time,
        configs: Vec<VolumeConfig>,
        told: Reply<()>,
        host: &mut H,
    ) {
        if configs.is_empty() {
            return told(Ok(()));
        }
        self.cuts.last += 1;
        let cut = self.cuts.last;
        let generations = configs.iter().map(|config| config.generation).collect();
        let under_way = UnderWay { cut: Cut::new(generations, now), exports: Vec::new(), told };
        self.cuts.all.insert(cut, under_way);
        for (place, config) in configs.into_iter().enumerate() {
            let purpose = Purpose::Cut { cut, place };
            let (name, description) = (String::new(), String::new());
            let new = NewExport { name, description, read_only: true, config, view: true, purpose };
            let export = self.begin(now, new, host);
            if let Some(under_way) = self.cuts.all.get_mut(&cut) {
                under_way.exports.push(export);
            }
        }
    }

    /// Asks one view for what its cut says.
    pub(super) fn ask_for_cut(&mut self, export: u64, cut: u64, place: usize) {
        if let Some(under_way) = self.cuts.all.get(&cut) {
            let event = ClientEvent::Submit { tag: CHANGE_TAG, op: under_way.cut.op(place) };
            self.tasks.push_back((export, event));
        }
    }

    /// One view did what it was asked, or can not.
    pub(super) fn cut_answered(&mut self, cut: u64, result: &Result<BlockResult, BlockError>) {
        let Some(under_way) = self.cuts.all.get_mut(&cut) else { return };
        match under_way.cut.ended(result) {
            CutEnd::Waits => {}
            CutEnd::Next => {
                for (place, export) in under_way.exports.clone().into_iter().enumerate() {
                    self.ask_for_cut(export, cut, place);
                }
            }
            CutEnd::Over(result) => self.end_cut(cut, result),
        }
    }

    /// Gives up the cuts that take too long.
    pub(super) fn expire_cuts(&mut self, now: Time) {
        let expired = |(cut, one): (&u64, &mut UnderWay)| Some((*cut, one.cut.expire(now)?));
        let over: Vec<(u64, BlockError)> = self.cuts.all.iter_mut().filter_map(expired).collect();
        over.into_iter().for_each(|(cut, error)| self.end_cut(cut, Err(error)));
    }

    fn end_cut(&mut self, cut: u64, result: Result<(), BlockError>) {
        let Some(under_way) = self.cuts.all.remove(&cut) else { return };
        for export in under_way.exports {
            if let Some(view) = self.withdraw(export) {
                end_session(view);
            }
        }
        (under_way.told)(result.map_err(DoorError::Lost));
    }
}
