//! What is made of nodes that fail, and where this one stands.

use basalt_api::v1::Location;
use basalt_meta::healing;
use basalt_meta::liveness::Thresholds;
use clap::Args;
use std::time::Duration;

/// The shortest silence that may count: links are asked for a sign of life twice a second.
const SUSPECT_MIN: Duration = Duration::from_millis(1500);
const SILENCE_MAX: Duration = Duration::from_secs(3600);

/// Options about failures. Of the nodes the settings of the one that leads the metadata group count, so give all
/// nodes
/// the same; the location is each node's own.
#[derive(Args, Clone, Debug)]
pub struct HealingOptions {
    /// Silence after which a node counts as suspect, such as 3s or 2500ms: its API or its data path does not answer
    /// the node that leads the metadata group. Give all nodes the same.
    #[arg(long, value_name = "TIME", default_value = "3s", value_parser = silence)]
    pub suspect_after: Duration,

    /// Silence of both, API and data path, after which a node counts as dead: volumes that are attached to it
    /// may be attached elsewhere at once, and are if they are told to. At least twice --suspect-after. Give all
    /// nodes the same.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = silence)]
    pub down_after: Duration,

    /// Time after which a node that is dead, or whose device has failed, has its replicas made anew on other
    /// nodes, such as 10m, if there are enough others with room; 0 for never. Give all nodes the same.
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = super::grace)]
    pub rebuild_after: Duration,

    /// Time that a node which was told to stop (SIGTERM) has to come back before its silence counts; 0 for none. Give
    /// all nodes the same.
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = super::grace)]
    pub stop_grace: Duration,

    /// Where the machine stands: region=..,zone=..,rack=.., or some of them. Replicas are kept apart by it, see
    /// 'basalt cluster failure-domain'.
    #[arg(long, value_name = "KEY=VALUE,...", value_parser = location)]
    pub location: Option<Location>,
}

impl HealingOptions {
    /// Looks for what can not work.
    ///
    /// # Errors
    /// Says what is wrong.
    pub fn check(&self) -> Result<(), String> {
        if self.down_after < 2 * self.suspect_after {
            return Err(format!(
                "--down-after {} ms is less than twice --suspect-after {} ms: a node is to be suspect for a while \
                 before it counts as dead",
                self.down_after.as_millis(),
                self.suspect_after.as_millis()
            ));
        }
        Ok(())
    }

    /// When a silent node is something else.
    pub fn thresholds(&self) -> Thresholds {
        Thresholds { suspect: self.suspect_after, down: self.down_after, stop: self.stop_grace }
    }

    /// Where the machine stands, if it says so.
    pub fn location(&self) -> Option<Location> {
        self.location.clone()
    }
}

fn silence(text: &str) -> Result<Duration, String> {
    let time = match text.strip_suffix("ms").map(str::parse) {
        Some(Ok(millis)) => Duration::from_millis(millis),
        Some(Err(_)) => return Err(format!("'{text}' is no time: such as 2500ms")),
        None => super::time(text)?,
    };
    if !(SUSPECT_MIN..=SILENCE_MAX).contains(&time) {
        return Err(format!("{text} is not from 1500ms to 1h"));
    }
    Ok(time)
}

fn location(text: &str) -> Result<Location, String> {
    let mut location = Location::default();
    for part in text.split(',') {
        let (key, value) = part.split_once('=').unwrap_or((part, ""));
        let place = match key {
            "region" => &mut location.region,
            "zone" => &mut location.zone,
            "rack" => &mut location.rack,
            _ => return Err(format!("'{part}' is none of region=.., zone=.., rack=..")),
        };
        if value.is_empty() || !place.is_empty() {
            return Err(format!("'{text}': give each of region, zone and rack once, with a value"));
        }
        value.clone_into(place);
    }
    healing::check_location(&location)?;
    Ok(location)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_are_read() {
        let read = location("region=eu,zone=eu-1,rack=r7").expect("a location");
        assert_eq!((&*read.region, &*read.zone, &*read.rack), ("eu", "eu-1", "r7"));
        assert_eq!(location("zone=a").expect("some of it").zone, "a");
        for bad in ["", "zone", "zone=", "zone=a,zone=b", "row=3", "zone=a b", "zone=ä"] {
            assert!(location(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn silences_are_neither_too_short_nor_too_long() {
        assert_eq!(silence("2500ms"), Ok(Duration::from_millis(2500)));
        assert_eq!(silence("10s"), Ok(Duration::from_secs(10)));
        for bad in ["", "0", "1s", "1499ms", "2h", "-1s", "xms"] {
            assert!(silence(bad).is_err(), "{bad}");
        }
    }
}
