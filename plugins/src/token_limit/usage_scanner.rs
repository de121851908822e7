//! Finds the `usage` of an LLM's answer while it streams by, as one JSON document or as server-sent events.
//!
//! Nothing is kept of the answer but the numbers: a state machine reads it byte by byte.

/// The tokens that an answer tells.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Tokens {
    pub(crate) prompt: Option<u64>,
    pub(crate) completion: Option<u64>,
    pub(crate) total: Option<u64>,
}

/// Reads an answer in pieces.
#[derive(Debug)]
pub(crate) struct UsageScanner {
    /// The tokens of the last `usage` that was complete.
    found: Option<Tokens>,
    tokens: Tokens,
    depth: u32,
    /// The depth of the object `usage` that is being read.
    usage_depth: Option<u32>,
    text: Text,
    /// The last string: a key, if a colon follows.
    string: ShortString,
    key: Key,
    number: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Text {
    Outside,
    Inside,
    Escape,
}

/// The key whose value is read next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Key {
    None,
    Usage,
    Prompt,
    Completion,
    Total,
}

/// The beginning of a string, as much as the keys have.
#[derive(Debug, Default)]
struct ShortString {
    bytes: [u8; 20],
    length: usize,
}

impl UsageScanner {
    pub(crate) fn new() -> Self {
        Self {
            found: None,
            tokens: Tokens::default(),
            depth: 0,
            usage_depth: None,
            text: Text::Outside,
            string: ShortString::default(),
            key: Key::None,
            number: None,
        }
    }

    /// Reads the next piece.
    pub(crate) fn read(&mut self, piece: &[u8]) {
        for byte in piece {
            self.byte(*byte);
        }
    }

    /// The tokens of the last complete `usage`; `None`: there was none.
    pub(crate) fn tokens(&self) -> Option<Tokens> {
        self.found
    }

    fn byte(&mut self, byte: u8) {
        // JSON has no line break within a string, and each server-sent event begins anew.
        if byte == b'\n' && self.text != Text::Outside {
            self.restart();
            return;
        }
        match (self.text, byte) {
            (Text::Escape, _) => {
                self.text = Text::Inside;
                self.string.push(0);
            }
            (Text::Inside, b'\\') => self.text = Text::Escape,
            (Text::Inside, b'"') => self.text = Text::Outside,
            (Text::Inside, _) => self.string.push(byte),
            (Text::Outside, b'"') => {
                self.text = Text::Inside;
                self.string = ShortString::default();
                self.key = Key::None;
            }
            (Text::Outside, _) => self.structure(byte),
        }
    }

    fn structure(&mut self, byte: u8) {
        match byte {
            b':' => self.key = self.key_of_string(),
            b'0'..=b'9' if self.key != Key::None && self.key != Key::Usage => {
                let digit = u64::from(byte - b'0');
                let number = self.number.unwrap_or(0);
                self.number = Some(number.saturating_mul(10).saturating_add(digit));
            }
            b'{' | b'[' => {
                self.depth += 1;
                if self.key == Key::Usage && byte == b'{' {
                    self.usage_depth = Some(self.depth);
                    self.tokens = Tokens::default();
                }
                self.key = Key::None;
            }
            b'}' | b']' => {
                self.end_number();
                if self.usage_depth == Some(self.depth) {
                    self.found = Some(self.tokens);
                    self.usage_depth = None;
                }
                self.depth = self.depth.saturating_sub(1);
            }
            b',' => self.end_number(),
            // A line of server-sent events that is no JSON, `data: [DONE]` among them.
            b'\n' if self.depth == 0 => self.restart(),
            b' ' | b'\t' | b'\r' | b'\n' => {}
            // Anything else: a fraction, a sign, a word.
            _ => {
                self.number = None;
                if self.key != Key::Usage {
                    self.key = Key::None;
                }
            }
        }
    }

    /// A key counts where it stands in OpenAI's answers: `usage` in the outermost object, the numbers directly in `usage`.
    fn key_of_string(&self) -> Key {
        match (self.string.text(), self.usage_depth) {
            (b"usage", None) if self.depth == 1 => Key::Usage,
            (b"prompt_tokens" | b"input_tokens", Some(depth)) if depth == self.depth => Key::Prompt,
            (b"completion_tokens" | b"output_tokens", Some(depth)) if depth == self.depth => Key::Completion,
            (b"total_tokens", Some(depth)) if depth == self.depth => Key::Total,
            _ => Key::None,
        }
    }

    fn end_number(&mut self) {
        let number = self.number.take();
        match std::mem::replace(&mut self.key, Key::None) {
            Key::Prompt => self.tokens.prompt = number,
            Key::Completion => self.tokens.completion = number,
            Key::Total => self.tokens.total = number,
            Key::None | Key::Usage => {}
        }
    }

    fn restart(&mut self) {
        let found = self.found;
        *self = Self::new();
        self.found = found;
    }
}

impl ShortString {
    fn push(&mut self, byte: u8) {
        if let Some(place) = self.bytes.get_mut(self.length) {
            *place = byte;
        }
        self.length = self.length.saturating_add(1);
    }

    fn text(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(prompt: u64, completion: u64, total: u64) -> Option<Tokens> {
        Some(Tokens { prompt: Some(prompt), completion: Some(completion), total: Some(total) })
    }

    /// Reads `answer` in pieces of every length.
    #[track_caller]
    fn check(answer: &str, expected: Option<Tokens>) {
        for length in 1..=answer.len() {
            let mut scanner = UsageScanner::new();
            answer.as_bytes().chunks(length).for_each(|piece| scanner.read(piece));
            assert_eq!(scanner.tokens(), expected, "pieces of {length}");
        }
    }

    #[test]
    fn the_usage_of_a_whole_answer_is_found() {
        check(
            r#"{"id": "1", "choices": [{"message": {"content": "say \"usage\": {\"total_tokens\": 9}"}}],
            "usage": {"prompt_tokens": 12, "completion_tokens": 30, "total_tokens": 42,
                "prompt_tokens_details": {"cached_tokens": 5, "total_tokens": 7}}, "model": "m"}"#,
            tokens(12, 30, 42),
        );
    }

    #[test]
    fn the_usage_of_a_stream_is_that_of_its_last_event() {
        check(
            "data: {\"choices\":[{\"delta\":{\"content\":\"\\\"usage\\\":{}\"}}],\"usage\":null}\n\n\
             data: {\"choices\":[],\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":2,\"total_tokens\":3}}\r\n\r\n\
             : a comment with \"an open string\n\n\
             data: {\"choices\":[],\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":5,\"total_tokens\":6}}\n\n\
             data: [DONE]\n\n",
            tokens(1, 5, 6),
        );
    }

    #[test]
    fn an_answer_without_usage_tells_none() {
        for answer in [
            "",
            "null",
            r#"{"usage": null}"#,
            r#"{"usage": 5, "total_tokens": 7}"#,
            r#"{"choices": [{"usage": {"total_tokens": 7}}]}"#,
            r#"{"usage": {"total_tokens": 7"#,
            "not JSON at all",
        ] {
            check(answer, None);
        }
        check(r#"{"usage": {"total_tokens": -7, "prompt_tokens": 1.5}}"#, Some(Tokens::default()));
        check(r#"{"usage": {}}"#, Some(Tokens::default()));
    }

    #[test]
    fn numbers_and_depths_beyond_all_bounds_do_no_harm() {
        let mut scanner = UsageScanner::new();
        scanner.read(&b"[".repeat(100_000));
        scanner.read(&b"]".repeat(200_000));
        scanner.read(format!("\n{{\"usage\": {{\"total_tokens\": {}}}}}", "9".repeat(50)).as_bytes());
        assert_eq!(scanner.tokens().unwrap().total, Some(u64::MAX));
    }
}
