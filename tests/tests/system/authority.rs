//! Certificate authorities for TLS between the planes, made for each test.

use std::path::PathBuf;
use std::time::{Duration, UNIX_EPOCH};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

/// An authority.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key, PEM.
pub(crate) struct Issued {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

/// PEM files in a directory.
pub(crate) struct PemFiles(tempfile::TempDir);

/// Until when a certificate is good.
pub(crate) enum Until {
    Year(i32),
    DaysFromNow(u64),
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        params.not_after = rcgen::date_time_ymd(2090, 1, 1);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }

    /// A certificate for 127.0.0.1.
    pub(crate) fn issue(&self, until: &Until) -> Issued {
        self.issue_for(&["127.0.0.1", "localhost"], until)
    }

    /// A certificate for these names and addresses.
    pub(crate) fn issue_for(&self, names: &[&str], until: &Until) -> Issued {
        let key = KeyPair::generate().unwrap();
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.not_after = match until {
            Until::Year(year) => rcgen::date_time_ymd(*year, 1, 1),
            Until::DaysFromNow(days) => {
                let now = UNIX_EPOCH.elapsed().unwrap();
                rcgen::date_time_ymd(1970, 1, 1) + now + Duration::from_secs(days * 24 * 60 * 60)
            }
        };
        let certificate = params.signed_by(&key, &self.0).unwrap();
        Issued { certificate: certificate.pem(), key: key.serialize_pem() }
    }
}

impl PemFiles {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes a file.
    pub(crate) fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    /// Writes `NAME.pem` and `NAME.key`.
    pub(crate) fn put(&self, name: &str, issued: &Issued) {
        self.write(&format!("{name}.pem"), &issued.certificate);
        self.write(&format!("{name}.key"), &issued.key);
    }

    /// `--FLAG=PATH`
    pub(crate) fn flag(&self, flag: &str, name: &str) -> String {
        format!("--{flag}={}", self.path(name).display())
    }
}
