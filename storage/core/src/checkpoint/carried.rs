//! Pages of which the store alone knows what they hold, as a checkpoint that replaces all of it has to know of them.

use crate::consensus::PageId;
use crate::index::PageContent;
use basalt_wire::disk::checkpoint::{Record, page_prefix};

/// A page that a checkpoint takes over from the one that it replaces: nothing else holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Carried {
    /// The page.
    pub page: PageId,
    /// A bit for each of its granules that the store holds.
    pub granules: u64,
}

/// Why changes of the store are not durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SaveError {
    /// These pages, which were to be taken over, are damaged in the store: it holds what it held before.
    Lost(Vec<PageId>),
    /// The store failed, or may have.
    Failed(String),
}

/// The prefix of the keys of a page's records in the store.
pub fn prefix_of(page: &PageId) -> Vec<u8> {
    page_prefix(page.group, page.volume, page.chunk).to_vec()
}

/// Takes the records of one page, in the order of their keys.
///
/// # Errors
/// If one is damaged, or none of the page.
pub fn page_content<'a>(
    page: &PageId,
    records: impl Iterator<Item = (&'a [u8], &'a [u8])>,
) -> Result<PageContent, String> {
    let of_page = |(key, value): (&[u8], &[u8])| match Record::decode(key, value) {
        Ok(Record::Granule(group, volume, chunk, number, granule))
            if (group, volume, chunk) == (page.group, page.volume, page.chunk) =>
        {
            Ok((number, granule))
        }
        Ok(_) => Err("a record that is of no granule of the page".to_owned()),
        Err(error) => Err(error.to_string()),
    };
    records.map(of_page).collect()
}

impl Carried {
    /// Whether these are the page's records, all of them and undamaged.
    pub fn is_sound<'a>(&self, records: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> bool {
        let Ok(content) = page_content(&self.page, records) else { return false };
        content.iter().fold(0, |bits, (number, _)| bits | 1 << number) == self.granules
    }
}
