//! Connections by number, where a number is never used for two of them.

/// Names a connection: its place, and how often the place was used before. A late completion or
/// reply for a connection that is gone never meets its successor.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Handle(pub(crate) u64);

const INDEX_BITS: u32 = 20;
/// Bits of a handle: the place's number and 32 bits of generation.
pub(crate) const HANDLE_BITS: u32 = INDEX_BITS + 32;

impl Handle {
    fn new(index: usize, generation: u32) -> Handle {
        Handle(u64::from(generation) << INDEX_BITS | index as u64)
    }

    fn index(self) -> usize {
        (self.0 & ((1 << INDEX_BITS) - 1)) as usize
    }

    fn generation(self) -> u32 {
        (self.0 >> INDEX_BITS) as u32
    }
}

struct Slot<T> {
    generation: u32,
    value: Option<Box<T>>,
}

/// Values by [`Handle`].
pub(crate) struct Slab<T> {
    slots: Vec<Slot<T>>,
    free: Vec<usize>,
}

impl<T> Slab<T> {
    pub(crate) fn new() -> Slab<T> {
        Slab { slots: Vec::new(), free: Vec::new() }
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Adds a value; nothing (and the value is dropped) when there are no numbers left.
    pub(crate) fn insert(&mut self, value: T) -> Option<Handle> {
        let index = match self.free.pop() {
            Some(index) => index,
            None if self.slots.len() < 1 << INDEX_BITS => {
                self.slots.push(Slot { generation: 1, value: None });
                self.slots.len() - 1
            }
            None => return None,
        };
        self.slots[index].value = Some(Box::new(value));
        Some(Handle::new(index, self.slots[index].generation))
    }

    pub(crate) fn get(&self, handle: Handle) -> Option<&T> {
        let slot = self.slots.get(handle.index())?;
        slot.value.as_deref().filter(|_| slot.generation == handle.generation())
    }

    pub(crate) fn get_mut(&mut self, handle: Handle) -> Option<&mut T> {
        let slot = self.slots.get_mut(handle.index())?;
        let current = slot.generation == handle.generation();
        slot.value.as_deref_mut().filter(|_| current)
    }

    pub(crate) fn remove(&mut self, handle: Handle) -> Option<Box<T>> {
        let slot = self.slots.get_mut(handle.index())?;
        if slot.generation != handle.generation() {
            return None;
        }
        let value = slot.value.take()?;
        // A place whose generations are used up stays empty for good.
        if let Some(next) = slot.generation.checked_add(1) {
            slot.generation = next;
            self.free.push(handle.index());
        }
        Some(value)
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (Handle, &mut T)> {
        self.slots.iter_mut().enumerate().filter_map(|(index, slot)| {
            let handle = Handle::new(index, slot.generation);
            slot.value.as_deref_mut().map(|value| (handle, value))
        })
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Handle, &T)> {
        self.slots.iter().enumerate().filter_map(|(index, slot)| {
            let handle = Handle::new(index, slot.generation);
            slot.value.as_deref().map(|value| (handle, value))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_never_used_twice() {
        let mut slab = Slab::new();
        let a = slab.insert('a').unwrap();
        assert_eq!(slab.remove(a).as_deref(), Some(&'a'));
        let b = slab.insert('b').unwrap();
        assert_eq!(a.index(), b.index());
        assert_ne!(a, b);
        assert_eq!(slab.get(a), None);
        assert_eq!(slab.remove(a), None);
        assert_eq!(slab.get(b), Some(&'b'));
        assert!(b.0 < 1 << HANDLE_BITS);
        assert_eq!(slab.len(), 1);
    }
}
