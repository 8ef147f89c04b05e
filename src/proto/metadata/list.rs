//! Lists of elements in order of appearance, and finding one in them by its id.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use crate::limits::METADATA_SCANNED_MAX;

/// What has an id and can take over what a later element with the same id says. An association has two.
pub trait Identified: Default {
    fn ids(&self) -> (&str, &str);
    fn with_ids(id: &str, second: &str) -> Self;
    fn update(&mut self, later: Self);
    /// Bytes of its texts.
    fn text(&self) -> usize;
}

/// A list in order of appearance, with the place of each id. Elements without an id are never the same one.
pub struct ById<T> {
    pub items: Vec<T>,
    /// By a hash of the ids; only of a list too long to be scanned.
    places: HashMap<u64, usize>,
    hasher: Option<RandomState>,
}

impl<T> Default for ById<T> {
    fn default() -> Self {
        ById { items: Vec::new(), places: HashMap::new(), hasher: None }
    }
}

impl<T: Identified> ById<T> {
    pub fn new(items: Vec<T>) -> Self {
        let mut list = ById { items, ..ById::default() };
        list.index();
        list
    }

    /// The place of this id, a new one at the end if need be, and whether it was there.
    pub fn entry(&mut self, id: &str, second: &str) -> (usize, bool) {
        if let Some(place) = self.find(id, second) {
            return (place, true);
        }
        let place = self.items.len();
        self.items.push(T::with_ids(id, second));
        match &self.hasher {
            Some(hasher) => {
                self.places.insert(hasher.hash_one((id, second)), place);
            }
            None => self.index(),
        }
        (place, false)
    }

    pub fn update(&mut self, later: Vec<T>) {
        for item in later {
            let (id, second) = item.ids();
            let (place, _) = self.entry(id, second);
            self.items[place].update(item);
        }
    }

    fn find(&self, id: &str, second: &str) -> Option<usize> {
        if id.is_empty() {
            return None;
        }
        let is = |item: &T| item.ids() == (id, second);
        let Some(hasher) = &self.hasher else { return self.items.iter().position(is) };
        let place = *self.places.get(&hasher.hash_one((id, second)))?;
        // Two ids of one hash: nobody can bring that about, the hasher's keys are random.
        if is(&self.items[place]) { Some(place) } else { self.items.iter().position(is) }
    }

    fn index(&mut self) {
        if self.items.len() <= METADATA_SCANNED_MAX {
            return;
        }
        let hasher = RandomState::new();
        let hashes = self.items.iter().map(|item| hasher.hash_one(item.ids()));
        self.places = hashes.enumerate().map(|(place, hash)| (hash, place)).collect();
        self.hasher = Some(hasher);
    }
}

/// Where each id of a finished list is. Nothing is allocated for a short one.
pub struct Index<'a, T> {
    items: &'a [T],
    sorted: Vec<u32>,
}

impl<'a, T: Identified> Index<'a, T> {
    pub fn new(items: &'a [T]) -> Self {
        let mut sorted = Vec::new();
        if items.len() > METADATA_SCANNED_MAX {
            sorted.extend(0..items.len() as u32);
            sorted.sort_by_key(|place| items[*place as usize].ids());
        }
        Index { items, sorted }
    }

    pub fn find(&self, id: &str, second: &str) -> Option<&'a T> {
        if self.sorted.is_empty() {
            return self.items.iter().find(|item| item.ids() == (id, second));
        }
        let place = self
            .sorted
            .binary_search_by_key(&(id, second), |place| self.items[*place as usize].ids())
            .ok()?;
        Some(&self.items[self.sorted[place] as usize])
    }

    pub fn has(&self, id: &str) -> bool {
        self.find(id, "").is_some()
    }
}

/// The same for a list of ids.
pub struct Ids<'a> {
    ids: &'a [String],
    sorted: Vec<&'a str>,
}

impl<'a> Ids<'a> {
    pub fn new(ids: &'a [String]) -> Self {
        let mut sorted = Vec::new();
        if ids.len() > METADATA_SCANNED_MAX {
            sorted.extend(ids.iter().map(String::as_str));
            sorted.sort_unstable();
        }
        Ids { ids, sorted }
    }

    pub fn has(&self, id: &str) -> bool {
        if self.sorted.is_empty() {
            return self.ids.iter().any(|known| known == id);
        }
        self.sorted.binary_search(&id).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::metadata::Participant;

    #[test]
    fn long_lists_are_found_in_as_short_ones_are() {
        for count in [0, 1, METADATA_SCANNED_MAX, METADATA_SCANNED_MAX + 1, 500] {
            let mut list = ById::<Participant>::default();
            for id in 0..count {
                assert_eq!(list.entry(&id.to_string(), ""), (id, false));
            }
            let index = Index::new(&list.items);
            for id in 0..count {
                assert!(index.has(&id.to_string()));
            }
            assert!(!index.has("x"));
            for id in 0..count {
                assert_eq!(list.entry(&id.to_string(), ""), (id, true));
            }
            let ids: Vec<String> = (0..count).map(|id| id.to_string()).collect();
            assert!(ids.iter().all(|id| Ids::new(&ids).has(id)) && !Ids::new(&ids).has("x"));
        }
    }

    #[test]
    fn what_has_no_id_is_never_the_same() {
        let mut list = ById::<Participant>::default();
        assert_eq!([list.entry("", ""), list.entry("", "")], [(0, false), (1, false)]);
    }
}
