//! The format of pprof: <https://github.com/google/pprof/blob/main/proto/profile.proto>. The messages have only the fields that this
//! program writes.

use std::collections::BTreeMap;
use std::io::Write as _;

use flate2::Compression;
use flate2::write::GzEncoder;
use prost::Message;

/// A profile.
#[derive(Clone, PartialEq, Message)]
pub struct Profile {
    /// The meaning of the values of each sample.
    #[prost(message, repeated, tag = "1")]
    pub sample_type: Vec<ValueType>,
    /// The stacks.
    #[prost(message, repeated, tag = "2")]
    pub sample: Vec<Sample>,
    /// The programs and libraries.
    #[prost(message, repeated, tag = "3")]
    pub mapping: Vec<Mapping>,
    /// The places in the code.
    #[prost(message, repeated, tag = "4")]
    pub location: Vec<Location>,
    /// The functions.
    #[prost(message, repeated, tag = "5")]
    pub function: Vec<Function>,
    /// All texts, which others name by their place here. The first is empty.
    #[prost(string, repeated, tag = "6")]
    pub string_table: Vec<String>,
    /// The begin, in nanoseconds since 1970.
    #[prost(int64, tag = "9")]
    pub time_nanos: i64,
    /// The length, in nanoseconds.
    #[prost(int64, tag = "10")]
    pub duration_nanos: i64,
    /// The meaning of `period`.
    #[prost(message, optional, tag = "11")]
    pub period_type: Option<ValueType>,
    /// The time between two samples of a thread.
    #[prost(int64, tag = "12")]
    pub period: i64,
    /// Remarks, as places in the table of texts.
    #[prost(int64, repeated, tag = "13")]
    pub comment: Vec<i64>,
}

/// The meaning of a value.
#[derive(Clone, PartialEq, Message)]
pub struct ValueType {
    /// The meaning of the value.
    #[prost(int64, tag = "1")]
    pub r#type: i64,
    /// The unit.
    #[prost(int64, tag = "2")]
    pub unit: i64,
}

/// A stack with its values.
#[derive(Clone, PartialEq, Message)]
pub struct Sample {
    /// The innermost first.
    #[prost(uint64, repeated, tag = "1")]
    pub location_id: Vec<u64>,
    /// One for each type.
    #[prost(int64, repeated, tag = "2")]
    pub value: Vec<i64>,
    /// The thread.
    #[prost(message, repeated, tag = "3")]
    pub label: Vec<Label>,
}

/// A label of a stack.
#[derive(Clone, PartialEq, Message)]
pub struct Label {
    /// Its name.
    #[prost(int64, tag = "1")]
    pub key: i64,
    /// Its value.
    #[prost(int64, tag = "2")]
    pub str: i64,
}

/// A program or a library in memory.
#[derive(Clone, PartialEq, Message)]
pub struct Mapping {
    /// Counted from 1.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// The first address.
    #[prost(uint64, tag = "2")]
    pub memory_start: u64,
    /// The address behind the last.
    #[prost(uint64, tag = "3")]
    pub memory_limit: u64,
    /// The place in the file.
    #[prost(uint64, tag = "4")]
    pub file_offset: u64,
    /// The path of the file.
    #[prost(int64, tag = "5")]
    pub filename: i64,
    /// True if the profile has the names of its functions, so that nobody looks them up.
    #[prost(bool, tag = "7")]
    pub has_functions: bool,
    /// True likewise for files.
    #[prost(bool, tag = "8")]
    pub has_filenames: bool,
    /// True likewise for lines.
    #[prost(bool, tag = "9")]
    pub has_line_numbers: bool,
    /// True likewise for inlined functions.
    #[prost(bool, tag = "10")]
    pub has_inline_frames: bool,
}

/// A place in the code.
#[derive(Clone, PartialEq, Message)]
pub struct Location {
    /// Counted from 1.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// The program or library; 0: none is known.
    #[prost(uint64, tag = "2")]
    pub mapping_id: u64,
    /// The address in memory.
    #[prost(uint64, tag = "3")]
    pub address: u64,
    /// The functions there, the innermost inlined one first.
    #[prost(message, repeated, tag = "4")]
    pub line: Vec<Line>,
}

/// A line of a function.
#[derive(Clone, PartialEq, Message)]
pub struct Line {
    /// The function.
    #[prost(uint64, tag = "1")]
    pub function_id: u64,
    /// 0 if it is not known.
    #[prost(int64, tag = "2")]
    pub line: i64,
}

/// A function.
#[derive(Clone, PartialEq, Message)]
pub struct Function {
    /// Counted from 1.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// The name as people read it.
    #[prost(int64, tag = "2")]
    pub name: i64,
    /// The name in the program.
    #[prost(int64, tag = "3")]
    pub system_name: i64,
    /// The file of its source.
    #[prost(int64, tag = "4")]
    pub filename: i64,
}

impl Profile {
    /// The profile as bytes, compressed.
    pub fn to_gzip(&self) -> std::io::Result<Vec<u8>> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(&self.encode_to_vec())?;
        encoder.finish()
    }

    /// Reads a profile from bytes, compressed or not.
    pub fn from_bytes(bytes: &[u8]) -> std::io::Result<Self> {
        let mut plain = Vec::new();
        let plain = if bytes.starts_with(&[0x1f, 0x8b]) {
            std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(bytes), &mut plain)?;
            plain.as_slice()
        } else {
            bytes
        };
        Self::decode(plain).map_err(|error| std::io::Error::new(std::io::ErrorKind::InvalidData, error))
    }

    /// The text at a place in the table; empty if there is none.
    pub fn text(&self, at: i64) -> &str {
        usize::try_from(at).ok().and_then(|at| self.string_table.get(at)).map_or("", String::as_str)
    }

    /// The names of the functions of a stack, the innermost first, with those that are inlined.
    pub fn stack(&self, sample: &Sample) -> Vec<&str> {
        let locations =
            sample.location_id.iter().filter_map(|id| self.location.iter().find(|it| it.id == *id));
        let lines = locations.flat_map(|location| &location.line);
        let functions = lines.filter_map(|line| self.function.iter().find(|it| it.id == line.function_id));
        functions.map(|function| self.text(function.name)).collect()
    }
}

/// The table of texts while it grows.
pub(super) struct Texts {
    all: Vec<String>,
    places: BTreeMap<String, i64>,
}

impl Texts {
    pub(super) fn new() -> Self {
        Self { all: vec![String::new()], places: BTreeMap::from([(String::new(), 0)]) }
    }

    /// The place of a text.
    pub(super) fn place(&mut self, text: &str) -> i64 {
        if let Some(place) = self.places.get(text) {
            return *place;
        }
        let place = i64::try_from(self.all.len()).unwrap_or_default();
        self.all.push(text.to_owned());
        self.places.insert(text.to_owned(), place);
        place
    }

    pub(super) fn into_table(self) -> Vec<String> {
        self.all
    }
}
