//! Pages of lists.
//!
//! A token says behind what the next page begins, and with which other arguments the list was asked for: those may
//! not change from page to page.

use basalt_api::error;
use basalt_api::filter::Filter;
use basalt_api::reflect::{dynamic, pool};
use prost::{Message, Name};
use tonic::Status;

const SIZE_DEFAULT: usize = 50;
const SIZE_MAX: usize = 1000;
/// First part of every page token; another one is of another version.
const TOKEN: &str = "v2.";

/// What a page is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// At most so many.
    pub size: usize,
    /// Behind this, if it is not the first.
    pub after: Option<String>,
    arguments: u32,
}

impl Page {
    /// What is asked for. `arguments` are all others of the list.
    ///
    /// # Errors
    /// If the size is negative, or the token is not one of this list.
    pub fn asked(size: i32, token: &str, arguments: &[&str]) -> Result<Page, Status> {
        let size = match usize::try_from(size) {
            Ok(0) => SIZE_DEFAULT,
            Ok(size) => size.min(SIZE_MAX),
            Err(_) => return Err(error::invalid("page_size", format!("{size} is negative"))),
        };
        let arguments = fingerprint(arguments);
        if token.is_empty() {
            return Ok(Page { size, after: None, arguments });
        }
        let text = token_text(token).ok_or_else(bad_token)?;
        let (made, after) = text.split_once(':').ok_or_else(bad_token)?;
        if made != format!("{arguments:08x}") {
            let message = "the page token belongs to a list with other arguments; give those again, or start over \
                           without a token";
            return Err(error::invalid("page_token", message));
        }
        Ok(Page { size, after: Some(after.to_owned()), arguments })
    }

    /// Cuts what was found behind [`Page::after`], one more than the size or not, to the page, and gives the token of
    /// the next one.
    pub fn cut<T>(&self, found: &mut Vec<T>, key: impl Fn(&T) -> String) -> String {
        let more = found.len() > self.size;
        found.truncate(self.size);
        match found.last().filter(|_| more) {
            Some(last) => self.token_after(&key(last)),
            None => String::new(),
        }
    }

    /// The token of a page that begins behind this.
    pub fn token_after(&self, key: &str) -> String {
        let text = format!("{:08x}:{key}", self.arguments);
        let hex: String = text.bytes().map(|byte| format!("{byte:02x}")).collect();
        format!("{TOKEN}{hex}")
    }
}

/// The error for a token that was not made here.
pub fn bad_token() -> Status {
    let message = "the page token is none of this API's; start over without one";
    error::invalid("page_token", message)
}

fn token_text(token: &str) -> Option<String> {
    let hex = token.strip_prefix(TOKEN).filter(|hex| hex.is_ascii() && hex.len().is_multiple_of(2));
    let hex = hex?;
    let bytes = (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16));
    String::from_utf8(bytes.collect::<Result<Vec<u8>, _>>().ok()?).ok()
}

/// FNV-1a, with a bound between arguments.
fn fingerprint(arguments: &[&str]) -> u32 {
    let bytes = arguments.iter().flat_map(|argument| argument.bytes().chain([0xff]));
    bytes.fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// A filter over messages of a type.
///
/// # Errors
/// Says what is wrong with it.
pub fn filter_over<M: Message + Name>(text: &str) -> Result<Filter, Status> {
    let over = pool().get_message_by_name(&M::full_name()).expect("a message of the API");
    Filter::parse(text, &over).map_err(|problem| {
        error::invalid("filter", format!("the filter can not be read: {problem}"))
    })
}

/// Whether a filter holds for a message. An empty one costs nothing.
pub fn holds<M: Message + Name>(filter: &Filter, message: &M) -> bool {
    filter.is_empty() || filter.holds(&dynamic(message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_goes_on_with_its_list_alone() {
        let first = Page::asked(2, "", &["f", "o"]).expect("the first");
        let mut found = vec!["a", "b", "c"];
        let token = first.cut(&mut found, |text| (*text).to_owned());
        assert_eq!(found, ["a", "b"]);
        let next = Page::asked(2, &token, &["f", "o"]).expect("the next");
        assert_eq!(next.after.as_deref(), Some("b"));
        assert_eq!(next.cut(&mut vec!["c"], |text| (*text).to_owned()), "");
        let other = Page::asked(2, &token, &["fo", ""]).expect_err("another list");
        assert!(other.message().contains("other arguments"), "{other}");
    }

    #[test]
    fn sizes_and_tokens_are_checked() {
        assert_eq!(Page::asked(0, "", &[]).expect("default").size, SIZE_DEFAULT);
        assert_eq!(Page::asked(i32::MAX, "", &[]).expect("coerced").size, SIZE_MAX);
        assert!(Page::asked(-1, "", &[]).is_err());
        for bad in ["x", "v2.zz", "v2.6", "v2.c3a4", "v1.64", "v2.6464"] {
            assert!(Page::asked(1, bad, &[]).is_err(), "{bad}");
        }
    }
}
