//! Fixed newstyle negotiation: the part of a connection before its first request.
//!
//! The client haggles over options until it names an export with `EXPORT_NAME` or `GO`. Everything it
//! can make the server keep is bounded: one option at a time, of at most [`OPTION_MAX`] bytes, and
//! [`OPTIONS_MAX`] of them. The time it may take is bounded by the driver.

use crate::export::{Catalog, ExportInfo};
use crate::input::Input;
use crate::output::Output;
use crate::proto::{self, info, option, reply, transmission};
use crate::session::{SessionConfig, TlsPolicy};
use bytes::Bytes;

/// Option data that is read; longer options are skipped and refused.
const OPTION_MAX: usize = 64 << 10;
/// Option data that is skipped; a longer option ends the connection.
const OPTION_SKIP_MAX: usize = 1 << 20;
/// Options that a client may send.
const OPTIONS_MAX: u32 = 1000;

/// Which reply headers were agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Headers {
    /// Simple replies, as the Linux kernel uses them.
    Simple,
    /// Compact requests, structured replies.
    Structured,
    /// 64-bit requests and replies.
    Extended,
}

/// What was agreed on when the handshake ended.
#[derive(Clone, Debug)]
pub(crate) struct Agreed {
    pub export: ExportInfo,
    pub headers: Headers,
    /// Whether `base:allocation` was selected for this export.
    pub allocation: bool,
    /// Whether the client asked for, and so must keep to, the size constraints.
    pub sizes_known: bool,
}

/// What the session does after a step of the handshake.
pub(crate) enum Step {
    /// More bytes are needed.
    Wait,
    /// A message was handled; go on.
    Again,
    /// Answered with ACK: everything that follows is TLS.
    StartTls,
    /// The export is chosen.
    Enter(Box<Agreed>),
    /// Send what is queued, then close.
    Close(&'static str),
}

/// The state of the negotiation.
pub(crate) struct Handshake {
    greeted: bool,
    fixed: bool,
    no_zeroes: bool,
    options: u32,
    /// An option whose data is being skipped, and how much is left.
    skipping: Option<(u32, usize)>,
    headers: Headers,
    /// The export name for which `base:allocation` is selected.
    context: Option<String>,
    tls_active: bool,
    tls: TlsPolicy,
}

impl Handshake {
    pub fn new(tls: TlsPolicy, output: &mut Output) -> Handshake {
        output.put(&proto::INIT_MAGIC.to_be_bytes());
        output.put(&proto::OPTION_MAGIC.to_be_bytes());
        output.put(&(proto::FIXED_NEWSTYLE | proto::NO_ZEROES).to_be_bytes());
        Handshake {
            greeted: false,
            fixed: false,
            no_zeroes: false,
            options: 0,
            skipping: None,
            headers: Headers::Simple,
            context: None,
            tls_active: false,
            tls,
        }
    }

    /// TLS is on: whatever was agreed on in clear text is void.
    pub fn tls_started(&mut self) {
        self.tls_active = true;
        self.headers = Headers::Simple;
        self.context = None;
    }

    /// Handles at most one message.
    pub fn step(
        &mut self,
        config: &SessionConfig,
        catalog: &dyn Catalog,
        input: &mut Input,
        output: &mut Output,
    ) -> Step {
        if !self.greeted {
            return self.client_flags(input);
        }
        if let Some((option, left)) = self.skipping {
            return self.skip(option, left, input, output);
        }
        let Some(header) = input.peek::<{ proto::OPTION_BYTES }>() else {
            return Step::Wait;
        };
        let mut fields = Fields(&header);
        let magic = fields.u64();
        let (Some(option), Some(len)) = (fields.u32(), fields.u32()) else {
            unreachable!("an option header holds three fields");
        };
        let len = len as usize;
        if magic != Some(proto::OPTION_MAGIC) {
            return Step::Close("an option without its magic number");
        }
        if len > OPTION_SKIP_MAX {
            return Step::Close("an option of more than 1 MiB");
        }
        if len > OPTION_MAX {
            input.advance(proto::OPTION_BYTES);
            self.skipping = Some((option, len));
            return Step::Again;
        }
        if input.len() < proto::OPTION_BYTES + len {
            return Step::Wait;
        }
        self.options += 1;
        if self.options > OPTIONS_MAX {
            return Step::Close("more options than anyone needs");
        }
        input.advance(proto::OPTION_BYTES);
        let data = input.take(len);
        self.option(config, catalog, option, data, output)
    }

    fn client_flags(&mut self, input: &mut Input) -> Step {
        let Some(flags) = input.peek::<4>() else {
            return Step::Wait;
        };
        input.advance(4);
        let flags = u32::from_be_bytes(flags);
        if flags & !u32::from(proto::FIXED_NEWSTYLE | proto::NO_ZEROES) != 0 {
            return Step::Close("unknown client flags");
        }
        self.greeted = true;
        self.fixed = flags & u32::from(proto::FIXED_NEWSTYLE) != 0;
        self.no_zeroes = flags & u32::from(proto::NO_ZEROES) != 0;
        Step::Again
    }

    fn skip(&mut self, option: u32, left: usize, input: &mut Input, output: &mut Output) -> Step {
        let take = left.min(input.len());
        input.advance(take);
        if take < left {
            self.skipping = Some((option, left - take));
            return Step::Wait;
        }
        self.skipping = None;
        if option == option::EXPORT_NAME {
            return Step::Close("an export name of more than 64 KiB");
        }
        refuse(output, option, reply::ERR_TOO_BIG, "the option's data is longer than 64 KiB");
        Step::Again
    }

    fn option(
        &mut self,
        config: &SessionConfig,
        catalog: &dyn Catalog,
        option: u32,
        data: Bytes,
        output: &mut Output,
    ) -> Step {
        let forced = self.tls == TlsPolicy::Required && !self.tls_active;
        match option {
            option::ABORT => {
                answer(output, option, reply::ACK, &[]);
                return Step::Close("");
            }
            option::STARTTLS => return self.starttls(&data, output),
            option::EXPORT_NAME if forced => {
                return Step::Close("an export name without TLS, which this server demands");
            }
            _ if forced => {
                refuse(output, option, reply::ERR_TLS_REQD, "this server demands TLS");
                return Step::Again;
            }
            option::EXPORT_NAME => return self.export_name(catalog, &data, output),
            option::INFO | option::GO => {
                return self.info(config, catalog, option, &data, output);
            }
            option::LIST => self.list(catalog, &data, output),
            option::STRUCTURED_REPLY | option::EXTENDED_HEADERS => {
                self.raise_headers(option, &data, output);
            }
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => {
                self.meta_context(catalog, option, &data, output);
            }
            _ => refuse(output, option, reply::ERR_UNSUP, "this server does not know the option"),
        }
        Step::Again
    }

    fn starttls(&mut self, data: &[u8], output: &mut Output) -> Step {
        let option = option::STARTTLS;
        if !data.is_empty() {
            refuse(output, option, reply::ERR_INVALID, "STARTTLS takes no data");
        } else if self.tls_active {
            refuse(output, option, reply::ERR_INVALID, "TLS is on already");
        } else if self.tls == TlsPolicy::Off || !self.fixed {
            refuse(output, option, reply::ERR_POLICY, "this server is configured without TLS");
        } else {
            answer(output, option, reply::ACK, &[]);
            return Step::StartTls;
        }
        Step::Again
    }

    fn export_name(&mut self, catalog: &dyn Catalog, data: &[u8], output: &mut Output) -> Step {
        if self.headers == Headers::Extended {
            return Step::Close("EXPORT_NAME after extended headers were agreed on");
        }
        let Some(export) = name_of(data).and_then(|name| catalog.find(name)) else {
            return Step::Close("there is no export of that name");
        };
        if export.tls_only && !self.tls_active {
            return Step::Close("the export is served over TLS only");
        }
        if export.full {
            return Step::Close("the export has as many connections as it may have");
        }
        let agreed = self.agree(export, name_of(data).unwrap_or_default(), false);
        output.put(&agreed.export.size.to_be_bytes());
        output.put(&transmission_flags(&agreed).to_be_bytes());
        if !self.no_zeroes {
            output.put(&[0; 124]);
        }
        Step::Enter(Box::new(agreed))
    }

    fn agree(&self, export: ExportInfo, asked: &str, sizes_known: bool) -> Agreed {
        let allocation = self.context.as_deref() == Some(asked);
        Agreed { export, headers: self.headers, allocation, sizes_known }
    }

    fn info(
        &mut self,
        config: &SessionConfig,
        catalog: &dyn Catalog,
        option: u32,
        data: &[u8],
        output: &mut Output,
    ) -> Step {
        let mut fields = Fields(data);
        let request = fields.string().and_then(|name| {
            let count = fields.u16()?;
            let asked: Vec<u16> = (0..count).map_while(|_| fields.u16()).collect();
            (asked.len() == count as usize && fields.0.is_empty()).then_some((name, asked))
        });
        let Some((name, asked)) = request else {
            refuse(output, option, reply::ERR_INVALID, "the option's lengths do not match");
            return Step::Again;
        };
        let Some(export) = self.find(catalog, option, name, output) else {
            return Step::Again;
        };
        if export.full && option == option::GO {
            let text = format!(
                "'{}' has as many connections as it may have: close some of them first",
                export.name
            );
            refuse(output, option, reply::ERR_POLICY, &text);
            return Step::Again;
        }
        let agreed = self.agree(export, name, asked.contains(&info::BLOCK_SIZE));
        let mut item = Vec::with_capacity(64);
        put_info(&mut item, info::EXPORT, &agreed.export.size.to_be_bytes());
        item.extend(transmission_flags(&agreed).to_be_bytes());
        answer(output, option, reply::INFO, &item);
        put_info(&mut item, info::BLOCK_SIZE, &config.min_block.to_be_bytes());
        item.extend(config.preferred_block.to_be_bytes());
        item.extend(config.max_payload.to_be_bytes());
        answer(output, option, reply::INFO, &item);
        if asked.contains(&info::NAME) {
            put_info(&mut item, info::NAME, agreed.export.name.as_bytes());
            answer(output, option, reply::INFO, &item);
        }
        if asked.contains(&info::DESCRIPTION) && !agreed.export.description.is_empty() {
            put_info(&mut item, info::DESCRIPTION, agreed.export.description.as_bytes());
            answer(output, option, reply::INFO, &item);
        }
        answer(output, option, reply::ACK, &[]);
        if option == option::GO { Step::Enter(Box::new(agreed)) } else { Step::Again }
    }

    /// The export of that name, or an answer that says why not.
    fn find(
        &self,
        catalog: &dyn Catalog,
        option: u32,
        name: &str,
        output: &mut Output,
    ) -> Option<ExportInfo> {
        match catalog.find(name) {
            Some(export) if export.tls_only && !self.tls_active => {
                // Only INFO and GO may ask for TLS where the server does not demand it throughout.
                let kind = match option {
                    option::INFO | option::GO => reply::ERR_TLS_REQD,
                    _ => reply::ERR_POLICY,
                };
                refuse(output, option, kind, "the export is served over TLS only");
                None
            }
            Some(export) => Some(export),
            None if name.is_empty() => {
                let text = "there is no default export: name a volume that is attached here";
                refuse(output, option, reply::ERR_UNKNOWN, text);
                None
            }
            None => {
                let text = format!(
                    "no volume named '{name}' is attached at this server: attach it here first"
                );
                refuse(output, option, reply::ERR_UNKNOWN, &text);
                None
            }
        }
    }

    fn list(&mut self, catalog: &dyn Catalog, data: &[u8], output: &mut Output) {
        if !data.is_empty() {
            refuse(output, option::LIST, reply::ERR_INVALID, "LIST takes no data");
            return;
        }
        let mut item = Vec::with_capacity(64);
        catalog.each(&mut |export| {
            if export.tls_only && !self.tls_active {
                return;
            }
            item.clear();
            item.extend((export.name.len() as u32).to_be_bytes());
            item.extend(export.name.as_bytes());
            item.extend(export.description.as_bytes());
            answer(output, option::LIST, reply::SERVER, &item);
        });
        answer(output, option::LIST, reply::ACK, &[]);
    }

    fn raise_headers(&mut self, option: u32, data: &[u8], output: &mut Output) {
        if !data.is_empty() {
            refuse(output, option, reply::ERR_INVALID, "the option takes no data");
        } else if option == option::EXTENDED_HEADERS {
            self.headers = Headers::Extended;
            answer(output, option, reply::ACK, &[]);
        } else if self.headers == Headers::Extended {
            let text = "extended headers are agreed on already";
            refuse(output, option, reply::ERR_EXT_HEADER_REQD, text);
        } else {
            self.headers = Headers::Structured;
            answer(output, option, reply::ACK, &[]);
        }
    }

    fn meta_context(
        &mut self,
        catalog: &dyn Catalog,
        option: u32,
        data: &[u8],
        output: &mut Output,
    ) {
        let set = option == option::SET_META_CONTEXT;
        if set {
            self.context = None;
        }
        if self.headers == Headers::Simple {
            let text = "structured replies or extended headers come first";
            refuse(output, option, reply::ERR_INVALID, text);
            return;
        }
        let mut fields = Fields(data);
        let request = fields.string().and_then(|name| {
            let count = fields.u32()?;
            let mut queries = 0;
            let mut selected = count == 0 && !set;
            while queries < count {
                let query = fields.string()?;
                selected |= query == proto::ALLOCATION_CONTEXT || (!set && query == "base:");
                queries += 1;
            }
            fields.0.is_empty().then_some((name, selected))
        });
        let Some((name, selected)) = request else {
            refuse(output, option, reply::ERR_INVALID, "the option's lengths do not match");
            return;
        };
        if self.find(catalog, option, name, output).is_none() {
            return;
        }
        if selected {
            let id = if set { proto::ALLOCATION_ID } else { 0 };
            let mut item = Vec::with_capacity(32);
            item.extend(id.to_be_bytes());
            item.extend(proto::ALLOCATION_CONTEXT.as_bytes());
            answer(output, option, reply::META_CONTEXT, &item);
            if set {
                self.context = Some(name.to_owned());
            }
        }
        answer(output, option, reply::ACK, &[]);
    }
}

fn transmission_flags(agreed: &Agreed) -> u16 {
    use transmission::*;
    // An acknowledged write is durable on a majority, so a flush on any connection covers them all.
    let mut flags = HAS_FLAGS | SEND_FLUSH | SEND_FUA | CAN_MULTI_CONN | SEND_CACHE;
    if agreed.export.read_only {
        flags |= READ_ONLY;
    } else {
        flags |= SEND_TRIM | SEND_WRITE_ZEROES | SEND_FAST_ZERO;
    }
    if agreed.headers >= Headers::Structured {
        flags |= SEND_DF;
    }
    if agreed.headers == Headers::Extended && agreed.allocation {
        flags |= BLOCK_STATUS_PAYLOAD;
    }
    flags
}

fn name_of(data: &[u8]) -> Option<&str> {
    (data.len() <= proto::STRING_MAX).then_some(())?;
    std::str::from_utf8(data).ok()
}

fn put_info(item: &mut Vec<u8>, kind: u16, data: &[u8]) {
    item.clear();
    item.extend(kind.to_be_bytes());
    item.extend(data);
}

fn answer(output: &mut Output, option: u32, kind: u32, data: &[u8]) {
    output.put(&proto::OPTION_REPLY_MAGIC.to_be_bytes());
    output.put(&option.to_be_bytes());
    output.put(&kind.to_be_bytes());
    output.put(&(data.len() as u32).to_be_bytes());
    output.put(data);
}

/// Answers with an error and a text for people, cut to what the protocol allows.
fn refuse(output: &mut Output, option: u32, kind: u32, text: &str) {
    let mut end = text.len().min(proto::STRING_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    answer(output, option, kind, &text.as_bytes()[..end]);
}

/// Reads big-endian fields off the front of an option's data.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// A string after its 32-bit length.
    fn string(&mut self) -> Option<&'a str> {
        let len = self.u32()? as usize;
        let (head, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        name_of(head)
    }
}
