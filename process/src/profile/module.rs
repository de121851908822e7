//! The programs and libraries that are mapped into this process, and the sections of their ELF files.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;

/// The code of a program or a library in memory.
pub(super) struct Module {
    /// The path of its file, or `[vdso]`.
    pub(super) path: String,
    /// The addresses of its code.
    pub(super) start: u64,
    pub(super) end: u64,
    /// The place of its code in the file.
    pub(super) offset: u64,
    /// The difference between an address in memory and one in the file.
    pub(super) bias: u64,
    source: Source,
    sections: Vec<Section>,
}

/// A section of an ELF file.
#[derive(Clone)]
pub(super) struct Section {
    name: String,
    pub(super) address: u64,
    offset: u64,
    size: u64,
    /// False if the bytes are not in the file, or are compressed.
    is_plain: bool,
}

enum Source {
    File(File),
    Bytes(Vec<u8>),
}

/// The largest section that is read, in bytes.
const MAX_SECTION: u64 = 512 << 20;
const MAX_SECTIONS: u16 = 1024;
const MAX_SEGMENTS: u16 = 128;
/// The kernel maps two pages for its own functions.
const MAX_VDSO: u64 = 64 << 10;

const LOADED: u32 = 1;
const EXECUTABLE: u32 = 1;
const WITHOUT_BYTES: u32 = 8;
const COMPRESSED: u64 = 0x800;

impl Module {
    /// Reads the modules of this process. One whose file cannot be read is left out.
    pub(super) fn all() -> io::Result<Vec<Self>> {
        let program = fs::read_link("/proc/self/exe").unwrap_or_default();
        let maps = fs::read_to_string("/proc/self/maps")?;
        let modules = maps.lines().filter_map(|line| Mapping::parse(line).filter(|it| it.is_code));
        Ok(modules.filter_map(|mapping| Self::open(mapping, &program.to_string_lossy()).ok()).collect())
    }

    fn open(mapping: Mapping<'_>, program: &str) -> io::Result<Self> {
        let source = match mapping.path {
            "[vdso]" => Source::Bytes(own_memory(mapping.start, mapping.end)?),
            // The file at this path may be another one by now.
            path if path == program => Source::File(File::open("/proc/self/exe")?),
            path if path.starts_with('/') => Source::File(File::open(path)?),
            _ => return Err(malformed()),
        };
        let (sections, segments) = source.headers()?;
        let segment = segments.iter().find(|segment| {
            let begin = segment.offset & !0xfff;
            mapping.offset >= begin && mapping.offset < segment.offset.saturating_add(segment.size)
        });
        let segment = segment.ok_or_else(malformed)?;
        let address = segment.address.wrapping_add(mapping.offset).wrapping_sub(segment.offset);
        Ok(Self {
            path: mapping.path.to_owned(),
            start: mapping.start,
            end: mapping.end,
            offset: mapping.offset,
            bias: mapping.start.wrapping_sub(address),
            source,
            sections,
        })
    }

    /// The address of a section in the file; 0 if there is none.
    pub(super) fn address_of(&self, name: &str) -> u64 {
        self.sections.iter().find(|section| section.name == name).map_or(0, |section| section.address)
    }

    /// The section of this name with its bytes; `None`: there is none that can be read.
    pub(super) fn section(&self, name: &str) -> Option<(Section, Vec<u8>)> {
        let section = self.sections.iter().find(|section| section.name == name)?;
        if !section.is_plain || section.size > MAX_SECTION {
            return None;
        }
        let bytes = self.source.read(section.offset, section.size).ok()?;
        Some((section.clone(), bytes))
    }
}

/// A line of `/proc/self/maps`.
#[derive(Clone, Copy)]
struct Mapping<'l> {
    start: u64,
    end: u64,
    is_code: bool,
    offset: u64,
    path: &'l str,
}

impl<'l> Mapping<'l> {
    fn parse(line: &'l str) -> Option<Self> {
        // The path is the sixth field, and may contain blanks.
        let mut rest = line;
        let mut field = || {
            let (first, after) = rest.trim_start().split_once(' ')?;
            rest = after;
            Some(first)
        };
        let (start, end) = field()?.split_once('-')?;
        let permissions = field()?;
        let offset = field()?;
        field()?;
        field()?;
        let number = |text| u64::from_str_radix(text, 16).ok();
        Some(Self {
            start: number(start)?,
            end: number(end)?,
            is_code: permissions.contains('x'),
            offset: number(offset)?,
            path: rest.trim(),
        })
    }
}

/// A part of an ELF file with code that is mapped into memory.
struct Segment {
    offset: u64,
    address: u64,
    size: u64,
}

impl Source {
    fn read(&self, offset: u64, size: u64) -> io::Result<Vec<u8>> {
        let size = usize::try_from(size).map_err(|_| malformed())?;
        match self {
            Self::File(file) => {
                let available = file.metadata()?.len().saturating_sub(offset);
                if size as u64 > available {
                    return Err(malformed());
                }
                let mut bytes = vec![0; size];
                file.read_exact_at(&mut bytes, offset)?;
                Ok(bytes)
            }
            Self::Bytes(all) => {
                let start = usize::try_from(offset).map_err(|_| malformed())?;
                let end = start.checked_add(size).ok_or_else(malformed)?;
                all.get(start..end).map(<[u8]>::to_vec).ok_or_else(malformed)
            }
        }
    }

    /// Reads the tables of sections and of segments with code (ELF-64 Object File Format, figures 2, 3 and 6).
    fn headers(&self) -> io::Result<(Vec<Section>, Vec<Segment>)> {
        let header = Fields(self.read(0, 64)?);
        if header.0.get(..6) != Some(b"\x7fELF\x02\x01") {
            return Err(malformed());
        }
        let (segments_at, sections_at) = (header.u64(32), header.u64(40));
        let (segment_size, segment_count) = (header.u16(54), header.u16(56));
        let (section_size, section_count, names) = (header.u16(58), header.u16(60), header.u16(62));
        if segment_count > MAX_SEGMENTS || section_count > MAX_SECTIONS {
            return Err(malformed());
        }
        let entry = |table: u64, size: u16, index: u16| {
            let offset = table.saturating_add(u64::from(size) * u64::from(index));
            self.read(offset, u64::from(size)).map(Fields)
        };
        let mut segments = Vec::new();
        for index in 0..segment_count {
            let fields = entry(segments_at, segment_size, index)?;
            if fields.u32(0) == LOADED && fields.u32(4) & EXECUTABLE != 0 {
                segments.push(Segment {
                    offset: fields.u64(8),
                    address: fields.u64(16),
                    size: fields.u64(32),
                });
            }
        }
        let mut sections = Vec::new();
        if section_count > 0 && sections_at > 0 {
            let names = entry(sections_at, section_size, names)?;
            let names = self.read(names.u64(24), names.u64(32).min(MAX_SECTION))?;
            for index in 0..section_count {
                let fields = entry(sections_at, section_size, index)?;
                sections.push(Section {
                    name: text_at(&names, fields.u32(0)).to_owned(),
                    address: fields.u64(16),
                    offset: fields.u64(24),
                    size: fields.u64(32),
                    is_plain: fields.u32(4) != WITHOUT_BYTES && fields.u64(8) & COMPRESSED == 0,
                });
            }
        }
        Ok((sections, segments))
    }
}

/// Bytes with numbers at known places; a number beyond the end is 0.
pub(super) struct Fields(pub(super) Vec<u8>);

impl Fields {
    pub(super) fn u16(&self, at: usize) -> u16 {
        self.array(at).map_or(0, u16::from_le_bytes)
    }

    pub(super) fn u32(&self, at: usize) -> u32 {
        self.array(at).map_or(0, u32::from_le_bytes)
    }

    pub(super) fn u64(&self, at: usize) -> u64 {
        self.array(at).map_or(0, u64::from_le_bytes)
    }

    fn array<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        self.0.get(at..)?.first_chunk().copied()
    }
}

/// The text at a place in a table of strings.
pub(super) fn text_at(table: &[u8], at: u32) -> &str {
    let rest = usize::try_from(at).ok().and_then(|at| table.get(at..)).unwrap_or_default();
    let text = rest.split(|byte| *byte == 0).next().unwrap_or_default();
    std::str::from_utf8(text).unwrap_or_default()
}

/// Copies memory of this process.
fn own_memory(start: u64, end: u64) -> io::Result<Vec<u8>> {
    let size = end.saturating_sub(start).min(MAX_VDSO);
    let mut bytes = vec![0; usize::try_from(size).map_err(|_| malformed())?];
    File::open("/proc/self/mem")?.read_exact_at(&mut bytes, start)?;
    Ok(bytes)
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "it is no ELF file that can be read")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_modules_of_this_process_have_code_and_rules_for_its_stack() {
        let modules = Module::all().unwrap();
        let here = the_modules_of_this_process_have_code_and_rules_for_its_stack as fn() as usize as u64;
        let own = modules.iter().find(|module| (module.start..module.end).contains(&here)).unwrap();
        let (section, bytes) = own.section(".eh_frame_hdr").unwrap();
        assert!(section.address > 0 && !bytes.is_empty());
        assert!(own.section(".symtab").is_some());
        assert!(own.section(".none").is_none());
        assert!(modules.iter().any(|module| module.path.contains("libc")));
    }

    #[test]
    fn a_path_with_blanks_is_read_whole() {
        let line = "7f00-7fff r-xp 00001000 fe:00 4242   /opt/a b/lib.so";
        let mapping = Mapping::parse(line).unwrap();
        assert_eq!((mapping.start, mapping.offset, mapping.path), (0x7f00, 0x1000, "/opt/a b/lib.so"));
        assert!(mapping.is_code);
    }
}
