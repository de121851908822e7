//! Bytes from one socket to another without a copy in user space: splice(2) through a pipe.
//!
//! A pipe is needed only while bytes are in it, which is while the receiving socket is full. So the transfers of a worker
//! share its pipes, and a transfer that gets none copies.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use tokio::io::Interest;
use tokio::net::TcpStream;

/// The pipes of one worker.
pub struct Pipes {
    idle: RefCell<Vec<Ends>>,
    /// Number of pipes that exist.
    open: Cell<usize>,
    /// Number of pipes that may exist; 0 once the kernel has refused to splice.
    most: Cell<usize>,
}

/// Both ends of a pipe.
struct Ends {
    read: OwnedFd,
    write: OwnedFd,
}

/// A pipe while a transfer uses it. It goes back to its worker when it is empty, and is closed otherwise.
struct Pipe {
    /// `None` only while it is dropped.
    ends: Option<Ends>,
    /// Bytes in the pipe.
    held: usize,
    pipes: Rc<Pipes>,
}

/// One body's transfer from socket to socket.
pub struct Transfer {
    /// `None` while nothing is held.
    pipe: Option<Pipe>,
    /// The number of bytes to take at once.
    amount: usize,
    /// True once any bytes were taken.
    begun: bool,
}

/// The outcome of [`Transfer::poll_fill`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filled {
    Bytes(usize),
    /// The peer sends no more.
    End,
    /// The bytes have to be copied: there is no pipe, or the kernel does not splice from this socket.
    Unavailable,
}

/// The minimum remaining length of a body, in bytes, for which splicing pays.
pub const MIN_SPLICE: u64 = 32 << 10;

/// The number of bytes that are taken at once: the initial one, also used from a fast sender to a slow receiver; and
/// the maximum.
const MIN_AMOUNT: usize = 64 << 10;
const MAX_AMOUNT: usize = 256 << 10;

/// The number of pipes that are kept for the next transfers.
const MAX_IDLE: usize = 16;

impl Pipes {
    /// Creates a set of up to `most` pipes.
    pub fn new(most: usize) -> Rc<Self> {
        Rc::new(Self { idle: RefCell::default(), open: Cell::new(0), most: Cell::new(most) })
    }

    fn take(self: &Rc<Self>) -> Option<Pipe> {
        let idle = self.idle.borrow_mut().pop();
        let ends = match idle {
            Some(ends) => ends,
            None if self.open.get() < self.most.get() => {
                let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).ok()?;
                // If an unprivileged user has many pipes, further ones get too small a buffer to be useful.
                fcntl_setpipe_size(&write, MAX_AMOUNT).ok()?;
                self.open.set(self.open.get() + 1);
                Ends { read, write }
            }
            None => return None,
        };
        Some(Pipe { ends: Some(ends), held: 0, pipes: Rc::clone(self) })
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        let mut idle = self.pipes.idle.borrow_mut();
        match self.ends.take() {
            Some(ends) if self.held == 0 && idle.len() < MAX_IDLE => idle.push(ends),
            _ => self.pipes.open.set(self.pipes.open.get().saturating_sub(1)),
        }
    }
}

impl Default for Transfer {
    fn default() -> Self {
        Self { pipe: None, amount: MIN_AMOUNT, begun: false }
    }
}

impl Transfer {
    /// Returns true if bytes were taken and not yet passed on.
    #[inline]
    pub fn is_holding(&self) -> bool {
        self.pipe.is_some()
    }

    /// Returns true if splicing the rest of a body pays: it is large, or a large part of it was spliced already.
    #[inline]
    pub fn pays(&self, left: u64) -> bool {
        left >= MIN_SPLICE || self.begun && left > 0
    }

    /// Takes up to `most` bytes from `socket`. Nothing must be held.
    pub fn poll_fill(
        &mut self,
        pipes: &Rc<Pipes>,
        socket: &TcpStream,
        most: u64,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<Filled>> {
        let most = usize::try_from(most).unwrap_or(usize::MAX).min(self.amount);
        loop {
            ready!(socket.poll_read_ready(cx))?;
            let Some(mut pipe) = pipes.take() else { return Poll::Ready(Ok(Filled::Unavailable)) };
            let Some(ends) = &pipe.ends else { return Poll::Ready(Ok(Filled::Unavailable)) };
            let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
            let filled = socket
                .try_io(Interest::READABLE, || Ok(splice(socket, None, &ends.write, None, most, flags)?));
            match filled {
                Ok(0) => return Poll::Ready(Ok(Filled::End)),
                Ok(filled) => {
                    pipe.held = filled;
                    self.pipe = Some(pipe);
                    self.begun = true;
                    return Poll::Ready(Ok(Filled::Bytes(filled)));
                }
                Err(error) if is_again(&error) => {}
                Err(error) if is_refused(&error) => {
                    pipes.most.set(0);
                    return Poll::Ready(Ok(Filled::Unavailable));
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// Passes the held bytes on to `socket`, as many as it takes. Ready with 0 bytes: nothing is held.
    ///
    /// If the peer is gone, the kernel also raises SIGPIPE, which Rust programs ignore.
    pub fn poll_drain(&mut self, socket: &TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let Some(pipe) = &mut self.pipe else { return Poll::Ready(Ok(0)) };
        let Some(ends) = &pipe.ends else { return Poll::Ready(Ok(0)) };
        loop {
            if socket.poll_write_ready(cx)?.is_pending() {
                self.amount = MIN_AMOUNT;
                return Poll::Pending;
            }
            let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
            let drained = socket
                .try_io(Interest::WRITABLE, || Ok(splice(&ends.read, None, socket, None, pipe.held, flags)?));
            match drained {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(drained) => {
                    pipe.held = pipe.held.saturating_sub(drained);
                    if pipe.held == 0 {
                        self.pipe = None;
                        self.amount = (self.amount * 2).min(MAX_AMOUNT);
                    }
                    return Poll::Ready(Ok(drained));
                }
                Err(error) if is_again(&error) => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

fn is_again(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// Returns true if the kernel does not support splicing, or not from this kind of socket, or must not.
fn is_refused(error: &io::Error) -> bool {
    let refusals = [Errno::INVAL, Errno::NOSYS, Errno::OPNOTSUPP, Errno::PERM, Errno::ACCESS];
    refusals.iter().any(|refusal| error.raw_os_error() == Some(refusal.raw_os_error()))
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (near, listener.accept().await.unwrap().0)
    }

    #[tokio::test]
    async fn bytes_go_on_in_order_and_the_pipe_comes_back_when_it_is_empty() {
        let pipes = Pipes::new(1);
        let ((mut sender, from), (to, mut receiver)) = (pair().await, pair().await);
        let sent: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
        let expected = sent.clone();
        let sending = tokio::spawn(async move {
            sender.write_all(&sent).await.unwrap();
        });
        let receiving = tokio::spawn(async move {
            let mut received = vec![0; 3_000_000];
            receiver.read_exact(&mut received).await.unwrap();
            received
        });
        let mut transfer = Transfer::default();
        let mut taken = 0;
        loop {
            match poll_fn(|cx| transfer.poll_fill(&pipes, &from, 1 << 20, cx)).await.unwrap() {
                Filled::Bytes(filled) => taken += filled,
                Filled::End => break,
                Filled::Unavailable => panic!("the only pipe did not come back"),
            }
            while transfer.is_holding() {
                poll_fn(|cx| transfer.poll_drain(&to, cx)).await.unwrap();
            }
        }
        sending.await.unwrap();
        assert!(receiving.await.unwrap() == expected);
        assert_eq!((taken, pipes.open.get(), pipes.idle.borrow().len()), (3_000_000, 1, 1));
    }

    #[tokio::test]
    async fn a_pipe_that_is_left_with_bytes_in_it_is_closed_and_there_are_no_more_than_allowed() {
        let pipes = Pipes::new(2);
        let (mut sender, from) = pair().await;
        sender.write_all(&[b'x'; 9]).await.unwrap();
        let mut transfers = [Transfer::default(), Transfer::default(), Transfer::default()];
        let mut filled = Vec::new();
        for transfer in &mut transfers {
            filled.push(poll_fn(|cx| transfer.poll_fill(&pipes, &from, 3, cx)).await.unwrap());
        }
        assert_eq!(filled, [Filled::Bytes(3), Filled::Bytes(3), Filled::Unavailable]);
        assert_eq!(pipes.open.get(), 2);
        drop(transfers);
        assert_eq!((pipes.open.get(), pipes.idle.borrow().len()), (0, 0));
    }

    #[test]
    fn small_bodies_are_not_worth_a_pipe_but_the_end_of_a_large_one_is() {
        let mut transfer = Transfer::default();
        assert!(!transfer.pays(MIN_SPLICE - 1) && transfer.pays(MIN_SPLICE));
        transfer.begun = true;
        assert!(transfer.pays(1) && !transfer.pays(0));
    }
}
