//! The thread that writes the lines of all workers.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::sync::mpsc::Receiver;
use std::thread::JoinHandle;

use tracing::{error, info};

use super::destination::Destination;
use super::lost::Lost;
use super::queue::{Returned, Sender, channel};
use super::syslog::Syslog;

/// The number of buffers that may wait for the writer; together 16 MiB.
const QUEUE: usize = 64;

/// Where lines are written.
enum Output {
    Bytes {
        bytes: Box<dyn Write + Send>,
        /// True if a write that failed may have left a part of a line.
        is_partial: bool,
    },
    Syslog(Box<Syslog>),
}

/// Starts the writer; `None` if there is no access log. The thread ends after the last sender is dropped and
/// everything is written.
///
/// # Errors
///
/// If the file cannot be opened. A collector of syslog may come later.
pub fn start(destination: &Destination) -> io::Result<Option<(Sender, JoinHandle<()>)>> {
    if *destination == Destination::Off {
        return Ok(None);
    }
    let destination = destination.clone();
    let output = Output::open(&destination)?;
    let (sender, receiver) = channel(QUEUE);
    let returned = sender.returned().clone();
    let thread = std::thread::Builder::new()
        .name("access-log".into())
        .spawn(move || write_all(&receiver, &returned, output, &destination))?;
    Ok(Some((sender, thread)))
}

fn write_all(
    receiver: &Receiver<Vec<u8>>,
    returned: &Returned,
    mut output: Output,
    destination: &Destination,
) {
    let mut failed = false;
    for buffer in receiver {
        if returned.take_reopen() {
            match Output::open(destination) {
                Ok(anew) => output = anew,
                Err(error) => error!(%error, "cannot reopen the access log; lines still go to the old file"),
            }
        }
        match output.write(&buffer) {
            Ok(()) => {
                if std::mem::take(&mut failed) {
                    info!("the access log is written again");
                }
            }
            Err(Lost { lines, error }) => {
                returned.add_unwritten(lines);
                if !std::mem::replace(&mut failed, true) {
                    error!(%error, "cannot write the access log; its lines are dropped and counted until it can be written");
                }
            }
        }
        returned.keep(buffer);
    }
}

impl Output {
    fn open(destination: &Destination) -> io::Result<Self> {
        let bytes: Box<dyn Write + Send> = match destination {
            Destination::Off => Box::new(io::sink()),
            Destination::Stdout => Box::new(io::stdout()),
            Destination::File(path) => Box::new(OpenOptions::new().create(true).append(true).open(path)?),
            Destination::Syslog(address) => return Ok(Self::Syslog(Box::new(Syslog::new(address.clone())))),
        };
        Ok(Self::Bytes { bytes, is_partial: false })
    }

    fn write(&mut self, buffer: &[u8]) -> Result<(), Lost> {
        match self {
            Self::Syslog(syslog) => syslog.write(buffer),
            Self::Bytes { bytes, is_partial } => {
                let begun = if std::mem::take(is_partial) { bytes.write_all(b"\n") } else { Ok(()) };
                begun.and_then(|()| bytes.write_all(buffer)).and_then(|()| bytes.flush()).map_err(|error| {
                    *is_partial = true;
                    let lines = buffer.iter().filter(|byte| **byte == b'\n').count() as u64;
                    Lost { lines, error }
                })
            }
        }
    }
}
