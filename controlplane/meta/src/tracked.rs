//! A map that remembers what changed in it, so that no change can forget to tell those who watch.

use std::collections::BTreeMap;
use std::ops::Deref;

/// A map whose changes are remembered until they are taken.
#[derive(Clone, Debug)]
pub struct Tracked<K, V> {
    map: BTreeMap<K, V>,
    /// Keys that may have changed, in order; with the value of those that went.
    touched: Vec<(K, Option<V>)>,
}

impl<K, V> Default for Tracked<K, V> {
    fn default() -> Tracked<K, V> {
        Tracked { map: BTreeMap::new(), touched: Vec::new() }
    }
}

impl<K, V> From<BTreeMap<K, V>> for Tracked<K, V> {
    fn from(map: BTreeMap<K, V>) -> Tracked<K, V> {
        Tracked { map, touched: Vec::new() }
    }
}

/// What is remembered does not count.
impl<K: PartialEq, V: PartialEq> PartialEq for Tracked<K, V> {
    fn eq(&self, other: &Tracked<K, V>) -> bool {
        self.map == other.map
    }
}

/// Looking changes nothing, so it is as with any map.
impl<K, V> Deref for Tracked<K, V> {
    type Target = BTreeMap<K, V>;

    fn deref(&self) -> &BTreeMap<K, V> {
        &self.map
    }
}

impl<K: Ord + Clone, V> Tracked<K, V> {
    /// A value that may be changed.
    pub fn get_mut<Q>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: std::borrow::Borrow<Q>,
        Q: Ord + ToOwned<Owned = K> + ?Sized,
    {
        let value = self.map.get_mut(key)?;
        self.touched.push((key.to_owned(), None));
        Some(value)
    }

    /// Puts a value under a key.
    pub fn insert(&mut self, key: K, value: V) {
        self.touched.push((key.clone(), None));
        self.map.insert(key, value);
    }

    /// Takes a value out.
    pub fn remove<Q>(&mut self, key: &Q)
    where
        K: std::borrow::Borrow<Q>,
        Q: Ord + ?Sized,
    {
        if let Some((key, value)) = self.map.remove_entry(key) {
            self.touched.push((key, Some(value)));
        }
    }

    /// Takes out what is not to be kept.
    pub fn retain(&mut self, keep: impl Fn(&K, &V) -> bool) {
        let gone: Vec<K> =
            self.map.iter().filter(|(k, v)| !keep(k, v)).map(|(k, _)| k.clone()).collect();
        gone.iter().for_each(|key| self.remove(key));
    }

    /// The values that are meant, to be changed.
    pub fn select(&mut self, meant: impl Fn(&K, &V) -> bool) -> impl Iterator<Item = &mut V> {
        let touched = &mut self.touched;
        self.map.iter_mut().filter_map(move |(key, value)| {
            let found = meant(key, value);
            found.then(|| {
                touched.push((key.clone(), None));
                value
            })
        })
    }

    /// What may have changed and was not taken yet, some of it several times; with the value of what went.
    pub fn touched(&self) -> impl Iterator<Item = (&K, Option<&V>)> {
        self.touched.iter().map(|(key, gone)| (key, gone.as_ref()))
    }

    /// Forgets what changed so far.
    pub fn forget_touched(&mut self) {
        self.touched.clear();
    }

    /// What may have changed since this was asked last, each once; with the value of what went.
    pub fn take_touched(&mut self) -> BTreeMap<K, Option<V>> {
        let mut last = BTreeMap::new();
        for (key, gone) in std::mem::take(&mut self.touched) {
            last.insert(key, gone);
        }
        last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_change_a_map_is_remembered() {
        let mut map: Tracked<u32, &str> = Tracked::from(BTreeMap::from([(1, "a"), (2, "b")]));
        assert!(map.take_touched().is_empty());
        map.insert(3, "c");
        *map.get_mut(&1).expect("there") = "A";
        assert!(map.get_mut(&9).is_none());
        assert_eq!(map.take_touched(), BTreeMap::from([(1, None), (3, None)]));
        map.select(|key, _| *key > 2).for_each(|value| *value = "C");
        map.remove(&2);
        map.remove(&2);
        assert_eq!(map.take_touched(), BTreeMap::from([(2, Some("b")), (3, None)]));
        map.retain(|key, _| *key == 1);
        assert_eq!(map.take_touched(), BTreeMap::from([(3, Some("C"))]));
        map.remove(&1);
        map.insert(1, "again");
        assert_eq!(map.take_touched(), BTreeMap::from([(1, None)]));
        assert_eq!(*map, BTreeMap::from([(1, "again")]));
    }
}
