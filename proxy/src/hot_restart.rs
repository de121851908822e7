//! Hot restart: listening sockets pass from a running proxy to its successor over a Unix socket.
//!
//! The sockets never close, so no connection is refused: first both proxies accept on them; once the new one serves a
//! revision and reports it, the old one drains. A new proxy that fails before that has changed nothing.

use std::io::{self, IoSlice, IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::io::retry_on_intr;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg, sockopt,
};
use tracing::{info, warn};

/// The inherited sockets that listen on one address.
#[derive(Debug)]
pub struct InheritedSockets {
    pub address: SocketAddr,
    pub sockets: Vec<TcpListener>,
}

/// The proxy that handed over its sockets. It goes on serving until it is told that it is replaced.
#[derive(Debug)]
pub struct Predecessor(UnixStream);

/// The Unix socket on which sockets are offered to a successor.
#[derive(Debug)]
pub struct Offer {
    listener: UnixListener,
    path: PathBuf,
}

/// One record: an address, padded with zeros, sent with some of its sockets. The last record is empty.
type Record = [u8; 64];

/// The maximum number of sockets per record.
const BATCH: usize = 64;

/// The maximum number of addresses, and of sockets per address.
const MAX_ADDRESSES: usize = 1024;
const MAX_SOCKETS: usize = 4096;

/// The timeout of each read and write.
const TIMEOUT: Duration = Duration::from_secs(5);

/// How long a successor may take until it serves.
const SUCCESSOR_TIMEOUT: Duration = Duration::from_secs(300);

const REPLACED: u8 = b'R';

/// Takes over the sockets of the proxy that offers them at `path`; `None` if there is no such proxy.
pub fn take(path: &Path) -> io::Result<Option<(Vec<InheritedSockets>, Predecessor)>> {
    use io::ErrorKind::{ConnectionRefused, NotFound};
    let mut stream = match UnixStream::connect(path) {
        Ok(stream) => stream,
        // No proxy has run here, or it has ended.
        Err(error) if matches!(error.kind(), NotFound | ConnectionRefused) => return Ok(None),
        Err(error) => return Err(error),
    };
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let mut inherited: Vec<InheritedSockets> = Vec::new();
    while let Some((address, sockets)) = receive(&mut stream)? {
        let addresses = inherited.len();
        match inherited.iter_mut().find(|known| known.address == address) {
            Some(known) if known.sockets.len() < MAX_SOCKETS => known.sockets.extend(sockets),
            None if addresses < MAX_ADDRESSES => inherited.push(InheritedSockets { address, sockets }),
            _ => return Err(malformed()),
        }
    }
    Ok(Some((inherited, Predecessor(stream))))
}

impl Predecessor {
    /// Tells the predecessor that it is replaced, and waits for its acknowledgement.
    pub fn replaced(mut self) -> io::Result<()> {
        self.0.write_all(&[REPLACED])?;
        self.0.read_exact(&mut [0])
    }
}

impl Offer {
    /// Offers sockets at `path`, in place of any previous offer.
    pub fn at(path: &Path) -> io::Result<Self> {
        // The rename is atomic: a connecting process finds the old socket or the new one.
        let mut next = path.as_os_str().to_owned();
        next.push(".new");
        match std::fs::remove_file(&next) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&next)?;
        std::fs::rename(&next, path)?;
        Ok(Self { listener, path: path.to_owned() })
    }

    /// Hands over the sockets that `sockets` returns to every process that connects, until one of them reports that it
    /// serves. Blocks.
    pub fn serve<'a, S: AsRef<[TcpListener]> + 'a>(&self, sockets: impl Fn() -> Vec<(SocketAddr, S)>) {
        loop {
            let inherited = self.listener.accept().and_then(|(stream, _)| hand_over(stream, &sockets()));
            match inherited {
                Ok(()) => return,
                Err(error) => warn!(%error, path = %self.path.display(), "a successor did not take over"),
            }
            // A persistent socket error must not keep a core busy.
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

fn hand_over<S: AsRef<[TcpListener]>>(mut stream: UnixStream, sockets: &[(SocketAddr, S)]) -> io::Result<()> {
    let peer = sockopt::socket_peercred(&stream)?.uid;
    if peer != rustix::process::geteuid() && !peer.is_root() {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "it runs as another user"));
    }
    stream.set_read_timeout(Some(SUCCESSOR_TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    for (address, sockets) in sockets {
        for batch in sockets.as_ref().chunks(BATCH) {
            let batch: Vec<_> = batch.iter().map(|socket| socket.as_fd()).collect();
            send(&mut stream, &address.to_string(), &batch)?;
        }
    }
    send(&mut stream, "", &[])?;
    info!("a successor has the sockets");
    let mut word = [0];
    stream.read_exact(&mut word)?;
    if word != [REPLACED] {
        return Err(malformed());
    }
    stream.write_all(&word)
}

fn send(stream: &mut UnixStream, text: &str, sockets: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut record: Record = [0; 64];
    record.get_mut(..text.len()).ok_or_else(malformed)?.copy_from_slice(text.as_bytes());
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    if !sockets.is_empty() && !beside.push(SendAncillaryMessage::ScmRights(sockets)) {
        return Err(malformed());
    }
    let sent =
        retry_on_intr(|| sendmsg(&*stream, &[IoSlice::new(&record)], &mut beside, SendFlags::NOSIGNAL))?;
    stream.write_all(record.get(sent..).unwrap_or_default())
}

fn receive(stream: &mut UnixStream) -> io::Result<Option<(SocketAddr, Vec<TcpListener>)>> {
    let mut record: Record = [0; 64];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
    let mut beside = RecvAncillaryBuffer::new(&mut space);
    let received = retry_on_intr(|| {
        recvmsg(&*stream, &mut [IoSliceMut::new(&mut record)], &mut beside, RecvFlags::CMSG_CLOEXEC)
    })?;
    if received.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mut sockets: Vec<OwnedFd> = Vec::new();
    for message in beside.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            sockets.extend(descriptors);
        }
    }
    stream.read_exact(record.get_mut(received.bytes..).unwrap_or_default())?;
    let text = std::str::from_utf8(&record).map_err(|_| malformed())?.trim_end_matches('\0');
    if text.is_empty() {
        return Ok(None);
    }
    let address = text.parse().map_err(|_| malformed())?;
    Ok(Some((address, sockets.into_iter().map(TcpListener::from).collect())))
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "it is not a proxy that hands over its sockets")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_pass_and_go_on_listening() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("takeover.sock");
        assert!(take(&path).unwrap().is_none());
        drop(Offer::at(&path).unwrap());
        assert!(take(&path).unwrap().is_none(), "nobody is there any more");
        let offer = Offer::at(&path).unwrap();
        let (address, many) = crate::listener::bind("127.0.0.1:0".parse().unwrap(), 70, false).unwrap();
        let old = std::thread::spawn(move || {
            offer.serve(|| {
                vec![(address, many.iter().map(|socket| socket.try_clone().unwrap()).collect::<Vec<_>>())]
            });
        });
        // A successor that gives up changes nothing.
        drop(take(&path).unwrap().unwrap());
        let (inherited, predecessor) = take(&path).unwrap().unwrap();
        assert_eq!((inherited.len(), inherited[0].address, inherited[0].sockets.len()), (1, address, 70));
        predecessor.replaced().unwrap();
        old.join().unwrap();
        // The old sockets are closed, and the new ones listen.
        let _client = std::net::TcpStream::connect(address).unwrap();
        let accepted = || inherited[0].sockets.iter().any(|socket| socket.accept().is_ok());
        let deadline = std::time::Instant::now() + TIMEOUT;
        while !accepted() {
            assert!(std::time::Instant::now() < deadline);
        }
    }
}
