//! Tokens that are given by hand: by a flag, an environment variable, or a file that is re-read.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use signalbox_config::sha256;

use crate::store::{Role, TokenSource};

/// Where the tokens of this replica are given.
#[derive(Clone, Default)]
pub struct TokenFlags {
    /// Administrators' tokens, comma-separated.
    pub admin: Option<String>,
    /// A file with administrators' tokens, one a line.
    pub admin_file: Option<PathBuf>,
    /// Proxies' tokens, comma-separated.
    pub proxy: Option<String>,
    /// A file with proxies' tokens, one a line.
    pub proxy_file: Option<PathBuf>,
}

/// A token that is given by hand. It is in force while it is given, on this replica alone, and never stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GivenToken {
    /// `admin` or `proxy`; the second and later ones of a role are `admin-2` and so on.
    pub name: Arc<str>,
    /// The role, which says what it may do.
    pub role: Role,
    /// SHA-256 of its text.
    pub hash: [u8; 32],
    /// A flag or a file.
    pub source: TokenSource,
}

/// The shortest token that may be given, characters.
const MIN_LENGTH: usize = 16;

/// The longest, characters.
const MAX_LENGTH: usize = 512;

/// The most tokens of one role.
const MAX_TOKENS: usize = 32;

/// The largest file of tokens, bytes.
const MAX_FILE: u64 = 64 << 10;

impl TokenFlags {
    /// Reads all tokens that are given. The error names the place, and never the text of a token.
    pub fn read(&self) -> Result<Vec<GivenToken>, String> {
        let mut given = Vec::new();
        for (role, flag, text, file) in [
            (Role::Admin, "admin-token", &self.admin, &self.admin_file),
            (Role::Proxy, "proxy-token", &self.proxy, &self.proxy_file),
        ] {
            let mut hashes: Vec<([u8; 32], TokenSource)> = Vec::new();
            let mut add = |place: String, text: &str, source| -> Result<(), String> {
                check_text(text).map_err(|why| format!("{place} {why}"))?;
                let hash = sha256(text.as_bytes());
                // The same token may be given by a flag and by a file.
                if !hashes.iter().any(|(known, _)| *known == hash) {
                    hashes.push((hash, source));
                }
                Ok(())
            };
            if let Some(text) = text {
                for (index, token) in text.split(',').enumerate() {
                    let variable = flag.to_uppercase().replace('-', "_");
                    let place = format!("--{flag} (SIGNALBOX_{variable}): token {}", index + 1);
                    add(place, token, TokenSource::Flag)?;
                }
            }
            if let Some(path) = file {
                let shown = path.display();
                let content = read_file(path).map_err(|why| format!("--{flag}-file: {shown} {why}"))?;
                let lines = content.lines().enumerate().map(|(index, line)| (index + 1, line.trim()));
                let mut tokens =
                    lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#')).peekable();
                if tokens.peek().is_none() {
                    return Err(format!("--{flag}-file: {shown} has no token"));
                }
                for (number, token) in tokens {
                    add(
                        format!("--{flag}-file: the token in line {number} of {shown}"),
                        token,
                        TokenSource::File,
                    )?;
                }
            }
            if hashes.len() > MAX_TOKENS {
                return Err(format!("--{flag}: {} tokens are given; at most {MAX_TOKENS}", hashes.len()));
            }
            for (index, (hash, source)) in hashes.into_iter().enumerate() {
                let name = match index {
                    0 => role.as_str().into(),
                    _ => format!("{role}-{}", index + 1).into(),
                };
                given.push(GivenToken { name, role, hash, source });
            }
        }
        let hashes = |role| {
            given.iter().filter(move |token| token.role == role).map(|token| token.hash).collect::<Vec<_>>()
        };
        let proxies = hashes(Role::Proxy);
        if hashes(Role::Admin).iter().any(|hash| proxies.contains(hash)) {
            return Err(
                "a token is given as administrator's (--admin-token) and as proxies' (--proxy-token): \
                        they must differ, for every proxy has the latter"
                    .to_owned(),
            );
        }
        Ok(given)
    }

    /// True if tokens are given in files, which may change.
    pub fn has_files(&self) -> bool {
        self.admin_file.is_some() || self.proxy_file.is_some()
    }

    /// True if tokens of this role are given.
    pub fn gives(&self, role: Role) -> bool {
        match role {
            Role::Admin => self.admin.is_some() || self.admin_file.is_some(),
            Role::Proxy => self.proxy.is_some() || self.proxy_file.is_some(),
            Role::Viewer | Role::Editor => false,
        }
    }
}

/// Why `text` cannot be a token that is given by hand.
///
/// It must pass through a header, a cookie, a shell's variable and a comma-separated list unchanged, and must not be
/// guessed.
fn check_text(text: &str) -> Result<(), String> {
    if text.is_empty() {
        return Err("is empty".to_owned());
    }
    if let Some(found) = text.chars().find(|c| !c.is_ascii_graphic() || matches!(c, '"' | ',' | ';' | '\\')) {
        let shown = match found {
            ' ' => "a space".to_owned(),
            c if c.is_control() => format!("the control character {:#04x}", u32::from(c)),
            c => format!("the character {c:?}"),
        };
        return Err(format!("has {shown}; it may have letters, digits and ASCII punctuation but \" , ; \\"));
    }
    match text.len() {
        length @ ..MIN_LENGTH => Err(format!("has {length} characters; at least {MIN_LENGTH} are needed")),
        length if length > MAX_LENGTH => Err(format!("has {length} characters; at most {MAX_LENGTH}")),
        _ => Ok(()),
    }
}

fn read_file(path: &Path) -> Result<String, String> {
    let file = std::fs::File::open(path).map_err(|error| format!("cannot be read: {error}"))?;
    let mut content = String::new();
    file.take(MAX_FILE + 1)
        .read_to_string(&mut content)
        .map_err(|error| format!("cannot be read: {error}"))?;
    if content.len() as u64 > MAX_FILE {
        return Err(format!("has more than {MAX_FILE} bytes"));
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(admin: &str, proxy: &str) -> TokenFlags {
        TokenFlags { admin: Some(admin.to_owned()), proxy: Some(proxy.to_owned()), ..TokenFlags::default() }
    }

    const PROXY: &str = "proxy-token-0000";

    #[test]
    fn several_tokens_are_separated_by_commas_and_named_in_their_order() {
        let given = flags("first-token-00000,second-token-0000", PROXY).read().unwrap();
        let seen: Vec<_> = given.iter().map(|token| (&*token.name, token.role, token.hash)).collect();
        assert_eq!(
            seen,
            [
                ("admin", Role::Admin, sha256(b"first-token-00000")),
                ("admin-2", Role::Admin, sha256(b"second-token-0000")),
                ("proxy", Role::Proxy, sha256(PROXY.as_bytes())),
            ]
        );
    }

    #[test]
    fn a_token_that_can_be_guessed_or_broken_apart_is_refused_by_name_and_not_by_text() {
        for (text, why) in [
            ("", "token 1 is empty"),
            ("first-token-00000,", "token 2 is empty"),
            (",first-token-00000", "token 1 is empty"),
            ("short", "token 1 has 5 characters; at least 16 are needed"),
            ("first-token-00000,fifteen-letters", "token 2 has 15 characters"),
            ("first-token-00000 second-token-000", "token 1 has a space"),
            ("first-token-00000, second-token-000", "token 2 has a space"),
            ("first-token-00000\n", "token 1 has the control character 0x0a"),
            ("first-token-0000\t0", "token 1 has the control character 0x09"),
            ("first-token;00000", "token 1 has the character ';'"),
            ("first-token\"00000", "token 1 has the character '\"'"),
            ("first-token\\00000", "token 1 has the character '\\\\'"),
            ("first-token-0000é", "token 1 has the character 'é'"),
        ] {
            let error = flags(text, PROXY).read().unwrap_err();
            assert!(error.contains(why), "{text:?}: {error}");
            assert!(error.contains("--admin-token (SIGNALBOX_ADMIN_TOKEN)"), "{error}");
            assert!(!error.contains("first"), "{error}");
        }
        let long = "x".repeat(MAX_LENGTH + 1);
        assert!(flags(&long, PROXY).read().unwrap_err().contains("at most 512"));
        let many: Vec<String> = (0..=MAX_TOKENS).map(|number| format!("first-token-{number:05}")).collect();
        assert!(flags(&many.join(","), PROXY).read().unwrap_err().contains("at most 32"));
        // The characters of base64, URLs and JSON Web Tokens.
        assert!(flags("aB3+/=-_.~!$&'()*:@", PROXY).read().is_ok());
    }

    #[test]
    fn administrators_and_proxies_cannot_have_the_same_token() {
        let error =
            flags("first-token-00000,second-token-0000", "third-token-00000,second-token-0000").read();
        assert!(error.unwrap_err().contains("must differ"));
    }

    #[test]
    fn a_file_has_a_token_a_line_and_is_never_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokens");
        let read = |content: &str| {
            std::fs::write(&path, content).unwrap();
            let flags = TokenFlags {
                proxy: Some(PROXY.to_owned()),
                proxy_file: Some(path.clone()),
                ..TokenFlags::default()
            };
            flags.read().map(|given| given.iter().map(|token| token.source).collect::<Vec<_>>())
        };
        let (flag, file) = (TokenSource::Flag, TokenSource::File);
        let two = "# rotated in May\n\n  first-token-00000\r\nsecond-token-0000\n";
        assert_eq!(read(two).unwrap(), [flag, file, file]);
        assert_eq!(read(PROXY).unwrap(), [flag], "given twice, it is one token");
        for (content, why) in [
            ("", "has no token"),
            ("\n# none\n", "has no token"),
            ("\nshort\n", "the token in line 2 of"),
            ("first-token-00000,second-token-0000\n", "has the character ','"),
            (&"# x\n".repeat(20_000), "more than 65536 bytes"),
        ] {
            let error = read(content).unwrap_err();
            assert!(error.contains(why) && error.contains("--proxy-token-file"), "{error}");
        }
        std::fs::remove_file(&path).unwrap();
        let flags = TokenFlags { proxy_file: Some(path.clone()), ..TokenFlags::default() };
        assert!(flags.read().unwrap_err().contains("cannot be read"));
    }
}
