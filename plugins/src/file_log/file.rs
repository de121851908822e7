//! A file that lines are appended to, and that may be renamed or deleted meanwhile.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::PathBuf;

/// A file at a path, open or to be opened.
pub(super) struct LogFile {
    path: PathBuf,
    open: Option<File>,
    /// True if the last line was written in part.
    is_partial: bool,
}

const MODE: u32 = 0o640;

impl LogFile {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, open: None, is_partial: false }
    }

    /// Appends lines, each with its line break. Returns how many bytes were written, and why not all were.
    pub(super) fn append(&mut self, lines: &[u8]) -> (usize, Option<io::Error>) {
        let mut written = 0;
        let error = self.try_append(lines, &mut written).err();
        (written, error)
    }

    fn try_append(&mut self, lines: &[u8], written: &mut usize) -> io::Result<()> {
        if !self.is_current()? {
            self.open = None;
            self.open = Some(self.open()?);
            self.is_partial = false;
        }
        let Some(file) = &mut self.open else { return Ok(()) };
        if self.is_partial {
            file.write_all(b"\n")?;
            self.is_partial = false;
        }
        while let Some(rest) = lines.get(*written..).filter(|rest| !rest.is_empty()) {
            match file.write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    *written += count;
                    self.is_partial = written.checked_sub(1).and_then(|last| lines.get(last)) != Some(&b'\n');
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// True if the open file is the one at the path.
    fn is_current(&self) -> io::Result<bool> {
        let Some(file) = &self.open else { return Ok(false) };
        let open = file.metadata()?;
        match fs::metadata(&self.path) {
            Ok(found) => Ok((found.dev(), found.ino()) == (open.dev(), open.ino())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn open(&self) -> io::Result<File> {
        // To open a pipe could wait for a reader, and to open a device could do anything.
        match fs::metadata(&self.path) {
            Ok(found) if !found.is_file() => return Err(not_a_file()),
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(_) | Err(_) => {}
        }
        let file = OpenOptions::new().append(true).create(true).mode(MODE).open(&self.path)?;
        if file.metadata()?.is_file() { Ok(file) } else { Err(not_a_file()) }
    }
}

fn not_a_file() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "it is a directory, a device or a pipe")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn append(file: &mut LogFile, lines: &str) {
        let (written, error) = file.append(lines.as_bytes());
        assert_eq!((written, error.map(|error| error.to_string())), (lines.len(), None));
    }

    #[test]
    fn a_file_that_was_renamed_deleted_or_truncated_is_gone_on_with() {
        let dir = tempfile::tempdir().unwrap();
        let (path, old) = (dir.path().join("a.log"), dir.path().join("a.log.1"));
        let mut file = LogFile::new(path.clone());
        append(&mut file, "1\n2\n");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o137, 0, "others may not read it");
        fs::rename(&path, &old).unwrap();
        append(&mut file, "3\n");
        assert_eq!(
            (fs::read(&old).unwrap(), fs::read(&path).unwrap()),
            (b"1\n2\n".to_vec(), b"3\n".to_vec())
        );
        // As logrotate does with `create`.
        fs::rename(&path, &old).unwrap();
        fs::write(&path, "").unwrap();
        append(&mut file, "4\n");
        assert_eq!((fs::read(&old).unwrap(), fs::read(&path).unwrap()), (b"3\n".to_vec(), b"4\n".to_vec()));
        fs::remove_file(&path).unwrap();
        append(&mut file, "5\n");
        assert_eq!(fs::read(&path).unwrap(), b"5\n");
        OpenOptions::new().write(true).open(&path).unwrap().set_len(0).unwrap();
        append(&mut file, "6\n");
        assert_eq!(fs::read(&path).unwrap(), b"6\n");
    }

    #[test]
    fn what_is_no_file_is_not_written_to() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.log");
        for (path, message) in [
            (dir.path().to_owned(), "it is a directory, a device or a pipe"),
            ("/dev/null".into(), "it is a directory, a device or a pipe"),
            (dir.path().join("none/a.log"), "No such file"),
        ] {
            let (written, error) = LogFile::new(path.clone()).append(b"x\n");
            let error = error.unwrap().to_string();
            assert!(written == 0 && error.starts_with(message), "{}: {error}", path.display());
        }
        // It goes on by itself once it can.
        let mut file = LogFile::new(path.clone());
        fs::create_dir(&path).unwrap();
        assert!(file.append(b"1\n").1.is_some());
        fs::remove_dir(&path).unwrap();
        append(&mut file, "2\n");
        assert_eq!(fs::read(&path).unwrap(), b"2\n");
    }

    #[test]
    fn a_line_that_was_written_in_part_is_ended() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.log");
        let mut file = LogFile::new(path.clone());
        append(&mut file, "1\n{\"pa");
        append(&mut file, "2\n");
        assert_eq!(fs::read(&path).unwrap(), b"1\n{\"pa\n2\n");
    }
}
