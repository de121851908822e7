//! nginx as a backend: a server that nobody here wrote.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::process::{Daemon, find_program, free_port, wait_until};

/// An nginx that answers every request with its name.
#[derive(Debug)]
pub struct Nginx {
    address: SocketAddr,
    daemon: Option<Daemon>,
    dir: TempDir,
}

impl Nginx {
    /// Starts it; returns when it accepts connections.
    pub fn start(name: &str) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        // As root nginx gives itself to another user.
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777))?;
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let at = dir.path().display();
        // One process, so that a signal stops all of it.
        let configuration = format!(
            "daemon off; master_process off; worker_processes 1; pid {at}/pid; error_log {at}/errors warn;
events {{ worker_connections 512; }}
http {{
    access_log off;
    client_body_temp_path {at}/body; proxy_temp_path {at}/proxy; fastcgi_temp_path {at}/fastcgi;
    uwsgi_temp_path {at}/uwsgi; scgi_temp_path {at}/scgi;
    server {{ listen {address}; location / {{ return 200 '{name}'; }} }}
}}
"
        );
        std::fs::write(dir.path().join("nginx.conf"), configuration)?;
        let mut nginx = Self { address, daemon: None, dir };
        nginx.restart()?;
        Ok(nginx)
    }

    /// Starts it again after it was killed; returns when it accepts connections.
    pub fn restart(&mut self) -> Result<()> {
        let sbin = || Some("/usr/sbin/nginx".into()).filter(|path: &std::path::PathBuf| path.is_file());
        let program = find_program("nginx").or_else(sbin).context("nginx is not installed")?;
        let mut command = Command::new(program);
        command.arg("-c").arg(self.dir.path().join("nginx.conf")).arg("-p").arg(self.dir.path());
        command.arg("-e").arg(self.dir.path().join("errors"));
        self.daemon = Some(Daemon::spawn("nginx", &command, &self.dir.path().join("log"))?);
        wait_until(Duration::from_secs(10), || std::net::TcpStream::connect(self.address).is_ok())
            .context("nginx does not accept connections")
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Kills it like a crash.
    pub fn kill9(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.kill9();
        }
    }

    /// Lets it hang: it is there, and says nothing.
    pub fn freeze(&mut self) {
        self.signal(Signal::STOP);
    }

    /// Lets it go on.
    pub fn thaw(&mut self) {
        self.signal(Signal::CONT);
    }

    fn signal(&mut self, signal: Signal) {
        if let Some(daemon) = &mut self.daemon {
            daemon.signal(signal);
        }
    }
}
