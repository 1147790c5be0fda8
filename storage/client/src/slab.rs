//! A table of values with small numbers that are used again.

/// Values by number. The number of a removed value is given to a later one.
#[derive(Debug)]
pub(crate) struct Slab<T> {
    slots: Vec<Option<T>>,
    free: Vec<u32>,
}

impl<T> Default for Slab<T> {
    fn default() -> Slab<T> {
        Slab { slots: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slab<T> {
    #[inline]
    pub fn insert(&mut self, value: T) -> u32 {
        match self.free.pop() {
            Some(at) => {
                self.slots[at as usize] = Some(value);
                at
            }
            None => {
                self.slots.push(Some(value));
                (self.slots.len() - 1) as u32
            }
        }
    }

    #[inline]
    pub fn remove(&mut self, at: u32) -> T {
        let value = self.slots[at as usize].take().expect("a value of this number is kept");
        self.free.push(at);
        value
    }

    #[inline]
    pub fn get(&self, at: u32) -> Option<&T> {
        self.slots.get(at as usize).and_then(Option::as_ref)
    }

    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// The kept values' numbers, ascending.
    pub fn keys(&self) -> impl Iterator<Item = u32> + '_ {
        (0..self.slots.len() as u32).filter(|at| self.slots[*at as usize].is_some())
    }
}

impl<T> std::ops::Index<u32> for Slab<T> {
    type Output = T;
    fn index(&self, at: u32) -> &T {
        self.slots[at as usize].as_ref().expect("a value of this number is kept")
    }
}

impl<T> std::ops::IndexMut<u32> for Slab<T> {
    fn index_mut(&mut self, at: u32) -> &mut T {
        self.slots[at as usize].as_mut().expect("a value of this number is kept")
    }
}
