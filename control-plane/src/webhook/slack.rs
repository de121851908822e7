//! Messages for incoming webhooks of Slack, which several other programs take as well.

use serde_json::json;

/// The longest text, in characters before they are escaped. Slack shows 4,000 well.
const MAX_TEXT: usize = 2000;

/// The body of a message.
pub(super) fn message(sentence: &str) -> String {
    json!({"text": escaped(sentence)}).to_string()
}

/// A sentence as a text of Slack: `&`, `<` and `>` would begin entities, links and mentions
/// (<https://docs.slack.dev/messaging/formatting-message-text#escaping>). A very long one is cut short.
fn escaped(sentence: &str) -> String {
    let mut text = String::with_capacity(sentence.len().min(MAX_TEXT));
    for (index, c) in sentence.chars().enumerate() {
        if index == MAX_TEXT {
            text.push('…');
            break;
        }
        match c {
            '&' => text.push_str("&amp;"),
            '<' => text.push_str("&lt;"),
            '>' => text.push_str("&gt;"),
            c if c.is_control() => text.push(' '),
            c => text.push(c),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_mention_nobody_and_are_bounded() {
        for (sentence, text) in [
            ("Revision 5 of admin", "Revision 5 of admin"),
            ("<!channel> & <@U1>", "&lt;!channel&gt; &amp; &lt;@U1&gt;"),
            ("<https://evil|here>", "&lt;https://evil|here&gt;"),
            ("&amp;", "&amp;amp;"),
            ("two\nlines\tand\u{7}bells", "two lines and bells"),
            ("größer → 100 %", "größer → 100 %"),
            ("", ""),
        ] {
            assert_eq!(escaped(sentence), text);
        }
        let long = escaped(&"é".repeat(10_000));
        assert_eq!(long.chars().count(), MAX_TEXT + 1);
        assert!(long.ends_with("é…"));
        assert_eq!(escaped(&"é".repeat(MAX_TEXT)).chars().count(), MAX_TEXT);
        assert_eq!(message("a \"b\" <c>"), r#"{"text":"a \"b\" &lt;c&gt;"}"#);
    }
}
