//! A map that remembers what changed in it, so that no change can forget to tell those who watch.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

/// What follows from the values of a map, kept with each change of them. What a value adds when it enters is exactly
/// what it takes away when it leaves.
pub trait Follows<K, V>: Default {
    /// A value is there from now on.
    fn enter(&mut self, key: &K, value: &V);
    /// A value is not there any more, or is about to be changed.
    fn leave(&mut self, key: &K, value: &V);
}

/// Nothing follows.
impl<K, V> Follows<K, V> for () {
    fn enter(&mut self, _: &K, _: &V) {}
    fn leave(&mut self, _: &K, _: &V) {}
}

/// A value that several hold: a copy costs nothing, and one that is changed while others hold it is copied first.
#[derive(Debug, PartialEq)]
pub struct Shared<T>(Arc<T>);

impl<T> Shared<T> {
    /// One that nobody else holds yet.
    pub fn new(value: T) -> Shared<T> {
        Shared(Arc::new(value))
    }
}

impl<T> Shared<T> {
    /// Whether it is one and the same value. One that is held is never changed: a change makes another one.
    pub fn is_same(&self, other: &Shared<T>) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl<T: Clone> Shared<T> {
    /// The value itself.
    pub fn into_inner(self) -> T {
        Arc::unwrap_or_clone(self.0)
    }
}

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Shared<T> {
        Shared(self.0.clone())
    }
}

impl<T> From<T> for Shared<T> {
    fn from(value: T) -> Shared<T> {
        Shared::new(value)
    }
}

impl<T> Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: Clone> DerefMut for Shared<T> {
    fn deref_mut(&mut self) -> &mut T {
        Arc::make_mut(&mut self.0)
    }
}

/// A map whose changes are remembered until they are taken, with what follows from its values.
#[derive(Clone, Debug)]
pub struct Tracked<K, V, F = ()> {
    map: BTreeMap<K, V>,
    followed: F,
    /// Keys that may have changed, in order; with the value of those that went.
    touched: Vec<(K, Option<V>)>,
}

impl<K, V, F: Default> Default for Tracked<K, V, F> {
    fn default() -> Tracked<K, V, F> {
        Tracked { map: BTreeMap::new(), followed: F::default(), touched: Vec::new() }
    }
}

/// What is remembered does not count, and what follows needs no second look.
impl<K: PartialEq, V: PartialEq, F> PartialEq for Tracked<K, V, F> {
    fn eq(&self, other: &Tracked<K, V, F>) -> bool {
        self.map == other.map
    }
}

/// Looking changes nothing, so it is as with any map.
impl<K, V, F> Deref for Tracked<K, V, F> {
    type Target = BTreeMap<K, V>;

    fn deref(&self) -> &BTreeMap<K, V> {
        &self.map
    }
}

/// A value of a map that may be changed. What follows from it is brought up to date when this is dropped.
pub struct Touched<'a, K, V, F: Follows<K, V>> {
    key: &'a K,
    value: &'a mut V,
    followed: &'a mut F,
}

impl<K, V, F: Follows<K, V>> Deref for Touched<'_, K, V, F> {
    type Target = V;

    fn deref(&self) -> &V {
        self.value
    }
}

impl<K, V, F: Follows<K, V>> DerefMut for Touched<'_, K, V, F> {
    fn deref_mut(&mut self) -> &mut V {
        self.value
    }
}

impl<K, V, F: Follows<K, V>> Drop for Touched<'_, K, V, F> {
    fn drop(&mut self) {
        self.followed.enter(self.key, self.value);
    }
}

impl<K: Ord + Clone, V, F: Follows<K, V>> Tracked<K, V, F> {
    /// What follows from the values.
    pub fn followed(&self) -> &F {
        &self.followed
    }

    /// What follows from the values, to be told what else it follows from.
    pub fn followed_mut(&mut self) -> &mut F {
        &mut self.followed
    }

    /// Whether what follows is what all values together come to.
    pub fn is_exact(&self) -> bool
    where
        F: PartialEq,
    {
        let mut anew = F::default();
        self.map.iter().for_each(|(key, value)| anew.enter(key, value));
        anew == self.followed
    }

    /// A value that may be changed.
    pub fn get_mut<Q>(&mut self, key: &Q) -> Option<Touched<'_, K, V, F>>
    where
        K: std::borrow::Borrow<Q>,
        Q: Ord + ?Sized,
    {
        use std::ops::Bound::Included;
        let (key, value) = self.map.range_mut((Included(key), Included(key))).next()?;
        self.touched.push((key.clone(), None));
        self.followed.leave(key, value);
        Some(Touched { key, value, followed: &mut self.followed })
    }

    /// Puts a value under a key.
    pub fn insert(&mut self, key: K, value: impl Into<V>) {
        let value = value.into();
        self.touched.push((key.clone(), None));
        if let Some(old) = self.map.get(&key) {
            self.followed.leave(&key, old);
        }
        self.followed.enter(&key, &value);
        self.map.insert(key, value);
    }

    /// Takes a value out.
    pub fn remove<Q>(&mut self, key: &Q)
    where
        K: std::borrow::Borrow<Q>,
        Q: Ord + ?Sized,
    {
        if let Some((key, value)) = self.map.remove_entry(key) {
            self.followed.leave(&key, &value);
            self.touched.push((key, Some(value)));
        }
    }

    /// Takes out what is not to be kept.
    pub fn retain(&mut self, keep: impl Fn(&K, &V) -> bool) {
        let gone: Vec<K> =
            self.map.iter().filter(|(k, v)| !keep(k, v)).map(|(k, _)| k.clone()).collect();
        gone.iter().for_each(|key| self.remove(key));
    }

    /// Changes the values under some keys, as far as there are any.
    pub fn change_each(&mut self, keys: impl IntoIterator<Item = K>, change: impl Fn(&mut V)) {
        for key in keys {
            if let Some(mut value) = self.get_mut(&key) {
                change(&mut value);
            }
        }
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
        let mut map: Tracked<u32, &str> = Tracked::default();
        map.insert(1, "a");
        map.insert(2, "b");
        map.forget_touched();
        assert!(map.take_touched().is_empty());
        map.insert(3, "c");
        *map.get_mut(&1).expect("there") = "A";
        assert!(map.get_mut(&9).is_none());
        assert_eq!(map.take_touched(), BTreeMap::from([(1, None), (3, None)]));
        map.change_each([3, 7], |value| *value = "C");
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

    /// Follows the sum of all values.
    #[derive(Debug, Default, PartialEq)]
    struct Sum(i64);

    impl Follows<u32, i64> for Sum {
        fn enter(&mut self, _: &u32, value: &i64) {
            self.0 += value;
        }
        fn leave(&mut self, _: &u32, value: &i64) {
            self.0 -= value;
        }
    }

    #[test]
    fn what_follows_is_up_to_date_after_each_change() {
        let mut map: Tracked<u32, i64, Sum> = Tracked::default();
        map.insert(1, 10);
        map.insert(2, 20);
        map.insert(1, 11);
        assert_eq!(map.followed(), &Sum(31));
        *map.get_mut(&2).expect("there") = 5;
        assert_eq!(map.followed(), &Sum(16));
        map.change_each([1, 2, 9], |value| *value += 1);
        map.remove(&1);
        assert_eq!(map.followed(), &Sum(6));
        map.retain(|_, _| false);
        assert!(map.followed() == &Sum(0) && map.is_exact());
    }

    #[test]
    fn what_several_hold_is_copied_when_it_is_changed() {
        let mut one = Shared::new(vec![1]);
        let other = one.clone();
        one.push(2);
        assert_eq!((&*one, &*other), (&vec![1, 2], &vec![1]));
        assert_eq!(other.into_inner(), [1]);
    }
}
