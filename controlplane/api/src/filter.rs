//! Filters over resources: the part of AIP-160 that is of use here.
//!
//! `labels.env = "prod" AND size_bytes > 1073741824 AND NOT (state = DELETING OR labels:tmp)`: comparisons of a
//! field, by its path, with a value; `:` asks whether a map has a key, a text contains another, or a field is set
//! (`labels:*`). `AND` binds closer than `OR`; words that stand side by side are joined by `AND`.

use prost_reflect::{DynamicMessage, Kind, MapKey, MessageDescriptor, ReflectMessage, Value};
use std::cmp::Ordering;

/// The longest filter in bytes, and how deep its parentheses may be.
const LENGTH_MAX: usize = 2048;
const DEPTH_MAX: usize = 16;

/// A filter that was read.
#[derive(Clone, Debug, PartialEq)]
pub struct Filter(Option<Term>);

#[derive(Clone, Debug, PartialEq)]
enum Term {
    And(Vec<Term>),
    Or(Vec<Term>),
    Not(Box<Term>),
    Compare(Compare),
}

#[derive(Clone, Debug, PartialEq)]
struct Compare {
    path: Vec<String>,
    how: How,
    value: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Equal,
    Differs,
    Less,
    AtMost,
    More,
    AtLeast,
    Has,
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Word(String),
    Text(String),
    How(How),
    Open,
    Close,
}

impl Filter {
    /// Reads a filter over messages of a type. An empty one holds for all.
    ///
    /// # Errors
    /// Says what is wrong with it, and where fields are unknown, which there are.
    pub fn parse(text: &str, over: &MessageDescriptor) -> Result<Filter, String> {
        if text.len() > LENGTH_MAX {
            return Err(format!("a filter has at most {LENGTH_MAX} bytes"));
        }
        let tokens = tokens(text)?;
        if tokens.is_empty() {
            return Ok(Filter(None));
        }
        let mut reader = Reader { tokens: &tokens, over, depth: 0 };
        let term = reader.any()?;
        match reader.tokens.first() {
            None => Ok(Filter(Some(term))),
            Some(token) => Err(format!("{} is not expected there", shown(token))),
        }
    }

    /// Whether it holds for everything.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Whether it holds for a message of the type that it was read for.
    pub fn holds(&self, message: &DynamicMessage) -> bool {
        self.0.as_ref().is_none_or(|term| term.holds(message))
    }
}

impl Term {
    fn holds(&self, message: &DynamicMessage) -> bool {
        match self {
            Term::And(all) => all.iter().all(|term| term.holds(message)),
            Term::Or(any) => any.iter().any(|term| term.holds(message)),
            Term::Not(term) => !term.holds(message),
            Term::Compare(compare) => compare.holds(message),
        }
    }
}

impl Compare {
    fn holds(&self, message: &DynamicMessage) -> bool {
        let mut at = Value::Message(message.clone());
        for (depth, name) in self.path.iter().enumerate() {
            let next = match &at {
                Value::Message(inner) => {
                    let Some(field) = inner.descriptor().get_field_by_name(name) else {
                        return false;
                    };
                    // What is not set is asked for as it reads, but has nothing to look into.
                    if field.supports_presence() && !inner.has_field(&field) {
                        return self.how == How::Differs;
                    }
                    let value = inner.get_field(&field).into_owned();
                    if let (Kind::Enum(kind), Value::EnumNumber(number)) = (field.kind(), &value) {
                        let last = depth + 1 == self.path.len();
                        return last && self.compares_enum(&kind, *number);
                    }
                    value
                }
                Value::Map(map) => match map.get(&MapKey::String(name.clone())) {
                    Some(value) => value.clone(),
                    None => return self.how == How::Differs,
                },
                _ => return false,
            };
            at = next;
        }
        self.compares(&at)
    }

    fn compares(&self, at: &Value) -> bool {
        if self.how == How::Has {
            return self.has(at);
        }
        let ordering = match at {
            Value::String(text) => Some(text.as_str().cmp(&self.value)),
            Value::Bool(is) => self.value.parse::<bool>().ok().map(|value| is.cmp(&value)),
            Value::U32(number) => self.number().map(|value| i128::from(*number).cmp(&value)),
            Value::U64(number) => self.number().map(|value| i128::from(*number).cmp(&value)),
            Value::I32(number) => self.number().map(|value| i128::from(*number).cmp(&value)),
            Value::I64(number) => self.number().map(|value| i128::from(*number).cmp(&value)),
            _ => None,
        };
        ordering.is_some_and(|ordering| self.accepts(ordering))
    }

    fn compares_enum(&self, kind: &prost_reflect::EnumDescriptor, number: i32) -> bool {
        let named = |name: &str| {
            kind.values()
                .find(|value| value.name() == name || value.name().ends_with(&format!("_{name}")))
        };
        let Some(value) = named(&self.value) else { return self.how == How::Differs };
        match self.how {
            How::Has => number == value.number(),
            _ => self.accepts(number.cmp(&value.number())),
        }
    }

    fn number(&self) -> Option<i128> {
        self.value.parse().ok()
    }

    fn accepts(&self, ordering: Ordering) -> bool {
        match self.how {
            How::Equal | How::Has => ordering.is_eq(),
            How::Differs => ordering.is_ne(),
            How::Less => ordering.is_lt(),
            How::AtMost => ordering.is_le(),
            How::More => ordering.is_gt(),
            How::AtLeast => ordering.is_ge(),
        }
    }

    fn has(&self, at: &Value) -> bool {
        let any = self.value == "*";
        match at {
            Value::Map(map) if any => !map.is_empty(),
            Value::Map(map) => map.contains_key(&MapKey::String(self.value.clone())),
            Value::List(list) if any => !list.is_empty(),
            Value::List(list) => list.iter().any(|v| v.as_str() == Some(&self.value)),
            Value::String(text) if any => !text.is_empty(),
            Value::String(text) => text.contains(&self.value),
            Value::Message(_) => any,
            _ => Compare { how: How::Equal, ..self.clone() }.compares(at),
        }
    }
}

struct Reader<'a> {
    tokens: &'a [Token],
    over: &'a MessageDescriptor,
    depth: usize,
}

impl Reader<'_> {
    fn any(&mut self) -> Result<Term, String> {
        let mut terms = vec![self.all()?];
        while self.takes_word("OR") {
            terms.push(self.all()?);
        }
        Ok(one_or(terms, Term::Or))
    }

    fn all(&mut self) -> Result<Term, String> {
        let mut terms = vec![self.one()?];
        loop {
            let joined = self.takes_word("AND");
            let more = match self.tokens.first() {
                Some(Token::Word(word)) => word != "OR",
                Some(Token::Open) => true,
                _ => false,
            };
            match (joined, more) {
                (_, true) => terms.push(self.one()?),
                (true, false) => return Err("something is missing behind AND".to_owned()),
                (false, false) => return Ok(one_or(terms, Term::And)),
            }
        }
    }

    fn one(&mut self) -> Result<Term, String> {
        if self.takes_word("NOT") {
            return self.nested(|reader| Ok(Term::Not(Box::new(reader.one()?))));
        }
        if self.tokens.first() == Some(&Token::Open) {
            self.tokens = &self.tokens[1..];
            let term = self.nested(Reader::any)?;
            if self.tokens.first() != Some(&Token::Close) {
                return Err("a ')' is missing".to_owned());
            }
            self.tokens = &self.tokens[1..];
            return Ok(term);
        }
        self.compare().map(Term::Compare)
    }

    fn nested<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<T, String>,
    ) -> Result<T, String> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(format!("it is nested more than {DEPTH_MAX} deep"));
        }
        let result = read(self)?;
        self.depth -= 1;
        Ok(result)
    }

    fn compare(&mut self) -> Result<Compare, String> {
        let [Token::Word(path), Token::How(how), value, rest @ ..] = self.tokens else {
            let at = self.tokens.first().map_or("its end".to_owned(), shown);
            return Err(format!(
                "a comparison such as labels.env = \"prod\" is missing at {at}; write a field, one of = != < <= > \
                 >= :, and a value"
            ));
        };
        let value = match value {
            Token::Word(value) | Token::Text(value) => value.clone(),
            other => return Err(format!("{} is no value", shown(other))),
        };
        self.tokens = rest;
        let path: Vec<String> = path.split('.').map(str::to_owned).collect();
        check_path(self.over, &path)?;
        Ok(Compare { path, how: *how, value })
    }

    fn takes_word(&mut self, word: &str) -> bool {
        let found = matches!(self.tokens.first(), Some(Token::Word(w)) if w == word);
        if found {
            self.tokens = &self.tokens[1..];
        }
        found
    }
}

fn one_or(mut terms: Vec<Term>, join: fn(Vec<Term>) -> Term) -> Term {
    match terms.len() {
        1 => terms.remove(0),
        _ => join(terms),
    }
}

/// Whether a path leads somewhere in messages of a type.
fn check_path(over: &MessageDescriptor, path: &[String]) -> Result<(), String> {
    let mut kind = Some(Kind::Message(over.clone()));
    for (depth, name) in path.iter().enumerate() {
        let Some(Kind::Message(message)) = &kind else {
            return Err(format!("'{}' has no parts", path[..depth].join(".")));
        };
        let Some(field) = message.get_field_by_name(name) else {
            let names: Vec<String> = message.fields().map(|f| f.name().to_owned()).collect();
            return Err(format!(
                "'{}' is no field of a {}; those are {}",
                name.escape_debug(),
                message.name(),
                names.join(", ")
            ));
        };
        if field.is_map() {
            // A key may be anything, and is the last part.
            return match path.len() - depth {
                1 | 2 => Ok(()),
                _ => Err(format!("'{}' has no parts", path[..depth + 2].join("."))),
            };
        }
        kind = Some(field.kind());
    }
    Ok(())
}

fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let mut found = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let (token, length) = match first {
            '(' => (Token::Open, 1),
            ')' => (Token::Close, 1),
            '"' | '\'' => quoted(rest, first)?,
            '=' | '!' | '<' | '>' | ':' => comparison(rest)?,
            _ => {
                let ends = |c: char| c.is_whitespace() || "()\"'=!<>:".contains(c);
                let length = rest.find(ends).unwrap_or(rest.len());
                (Token::Word(rest[..length].to_owned()), length)
            }
        };
        found.push(token);
        rest = rest[length..].trim_start();
    }
    Ok(found)
}

fn quoted(rest: &str, quote: char) -> Result<(Token, usize), String> {
    let mut value = String::new();
    let mut chars = rest.char_indices().skip(1);
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => value.extend(chars.next().map(|(_, c)| c)),
            c if c == quote => return Ok((Token::Text(value), at + 1)),
            c => value.push(c),
        }
    }
    Err(format!("a {quote} is missing"))
}

fn comparison(rest: &str) -> Result<(Token, usize), String> {
    let known = [
        ("!=", How::Differs),
        ("<=", How::AtMost),
        (">=", How::AtLeast),
        ("=", How::Equal),
        ("<", How::Less),
        (">", How::More),
        (":", How::Has),
    ];
    let found = known.iter().find(|(sign, _)| rest.starts_with(sign));
    found
        .map(|(sign, how)| (Token::How(*how), sign.len()))
        .ok_or_else(|| "a '!' stands alone; write != or NOT".to_owned())
}

fn shown(token: &Token) -> String {
    match token {
        Token::Word(text) | Token::Text(text) => format!("'{}'", text.escape_debug()),
        Token::How(_) => "a comparison".to_owned(),
        Token::Open => "'('".to_owned(),
        Token::Close => "')'".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reflect::{dynamic, pool};
    use crate::v1::{Attachment, Volume, volume};
    use proptest::prelude::*;

    fn over() -> MessageDescriptor {
        pool().get_message_by_name("basalt.v1.Volume").expect("a message")
    }

    fn demo() -> Volume {
        Volume {
            name: "volumes/demo".to_owned(),
            size_bytes: 1 << 30,
            state: volume::State::Ready.into(),
            labels: [("env".to_owned(), "prod".to_owned())].into(),
            attachment: Some(Attachment {
                host: "n1".to_owned(),
                epoch: 3,
                ..Attachment::default()
            }),
            ..Volume::default()
        }
    }

    fn holds(filter: &str) -> bool {
        let read = Filter::parse(filter, &over()).unwrap_or_else(|e| panic!("{filter}: {e}"));
        read.holds(&dynamic(&demo()))
    }

    #[test]
    fn filters_hold_or_do_not() {
        for good in [
            "",
            "  ",
            "labels.env=\"prod\"",
            "labels.env = prod",
            "labels:env AND labels:*",
            "name:demo",
            "size_bytes>=1073741824 size_bytes < 1073741825",
            "state = READY",
            "state = STATE_READY",
            "state != DELETING",
            "NOT state = DELETING",
            "attachment.host = 'n1' AND attachment.epoch > 2",
            "attachment:*",
            "labels.none != x",
            "labels.env = dev OR name = \"volumes/demo\"",
            "(labels.env = dev OR labels.env = prod) AND NOT (size_bytes = 0)",
        ] {
            assert!(holds(good), "{good}");
        }
        for bad in [
            "labels.env = dev",
            "labels:tmp",
            "labels.none = x",
            "flattening:*",
            "flattening.done_bytes = 0",
            "state = DELETING",
            "labels.env = prod AND state = DELETING",
            "size_bytes > many",
            "NOT labels.env = prod",
        ] {
            assert!(!holds(bad), "{bad}");
        }
    }

    #[test]
    fn what_can_not_be_read_is_explained() {
        for (bad, part) in [
            ("colour = red", "is no field of a Volume; those are name"),
            ("name", "comparison"),
            ("name =", "comparison"),
            ("= 3", "comparison"),
            ("name = \"x", "is missing"),
            ("(name = x", "')' is missing"),
            ("name = x)", "not expected"),
            ("name = x AND", "missing behind AND"),
            ("name.part = x", "has no parts"),
            ("labels.a.b = x", "has no parts"),
            ("name ! x", "stands alone"),
            ("name = (", "is no value"),
        ] {
            let problem = Filter::parse(bad, &over()).expect_err(bad);
            assert!(problem.contains(part), "{bad}: {problem}");
        }
        let deep = format!("{}name = x", "(".repeat(DEPTH_MAX + 1));
        assert!(Filter::parse(&deep, &over()).expect_err("deep").contains("nested"));
        let not = format!("{}name = x", "NOT ".repeat(400));
        assert!(Filter::parse(&not, &over()).expect_err("deep").contains("nested"));
        assert!(Filter::parse(&"x".repeat(LENGTH_MAX + 1), &over()).is_err());
    }

    proptest! {
        #[test]
        fn no_text_breaks_the_reader(text in "[a-z=<>!:\"'()\\\\ .ANDORT0-9é]{0,60}") {
            if let Ok(filter) = Filter::parse(&text, &over()) {
                filter.holds(&dynamic(&demo()));
            }
        }
    }
}
