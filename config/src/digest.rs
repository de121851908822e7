use std::fmt;

/// The hash of one resource: blake3 over the length of its name, its name, and the exact bytes sent.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// The fingerprint of the resource `name` that is sent as `bytes`.
    pub fn of(name: &str, bytes: &[u8]) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&(name.len() as u64).to_le_bytes());
        hasher.update(name.as_bytes());
        hasher.update(bytes);
        Self(*hasher.finalize().as_bytes())
    }

    /// The resource's version: the first 16 hexadecimal digits.
    pub fn version(&self) -> String {
        self.0[..8].iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.version())
    }
}

/// The hash of a set of resources: the sum of their fingerprints, in four lanes of 64 bits that wrap.
///
/// A sum and not an exclusive or, in which two equal entries would cancel. It is updated in O(change).
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Digest([u64; 4]);

impl Digest {
    /// The length of its text in hexadecimal digits.
    pub(crate) const TEXT_LEN: usize = 64;

    /// Adds a resource to the set.
    pub fn add(&mut self, fingerprint: &Fingerprint) {
        for (lane, value) in self.0.iter_mut().zip(lanes(fingerprint)) {
            *lane = lane.wrapping_add(value);
        }
    }

    /// Takes a resource out of the set.
    pub fn subtract(&mut self, fingerprint: &Fingerprint) {
        for (lane, value) in self.0.iter_mut().zip(lanes(fingerprint)) {
            *lane = lane.wrapping_sub(value);
        }
    }

    /// 32 bytes, little-endian lanes, as in the commit marker.
    pub fn to_bytes(self) -> [u8; 32] {
        let mut bytes = [0; 32];
        for (chunk, lane) in bytes.chunks_exact_mut(8).zip(self.0) {
            chunk.copy_from_slice(&lane.to_le_bytes());
        }
        bytes
    }
}

fn lanes(fingerprint: &Fingerprint) -> [u64; 4] {
    let mut lanes = [0; 4];
    for (lane, chunk) in lanes.iter_mut().zip(fingerprint.0.chunks_exact(8)) {
        let mut word = [0; 8];
        word.copy_from_slice(chunk);
        *lane = u64::from_le_bytes(word);
    }
    lanes
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_bytes().iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_does_not_matter_and_removal_undoes() {
        let (a, b) = (Fingerprint::of("a", b"1"), Fingerprint::of("b", b"1"));
        let (mut ab, mut ba) = (Digest::default(), Digest::default());
        ab.add(&a);
        ab.add(&b);
        ba.add(&b);
        ba.add(&a);
        assert_eq!(ab, ba);
        ab.subtract(&a);
        ab.subtract(&b);
        assert_eq!(ab, Digest::default());
    }

    #[test]
    fn equal_pairs_do_not_cancel_and_names_are_delimited() {
        let a = Fingerprint::of("a", b"1");
        let mut twice = Digest::default();
        twice.add(&a);
        twice.add(&a);
        assert_ne!(twice, Digest::default());
        assert_ne!(Fingerprint::of("a", b"b1"), Fingerprint::of("ab", b"1"));
    }
}
