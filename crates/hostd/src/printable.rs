//! Text of guests and VMMs, fit for logs and messages.

/// The longest that goes into a message, in characters.
const LEN_MAX: usize = 200;

/// The text without what could steer a terminal or forge a second line, and not endless.
pub(crate) fn printable(text: &str) -> String {
    let text: String = text.chars().filter(|c| !c.is_control()).take(LEN_MAX).collect();
    text.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_cannot_steer_a_terminal_forge_a_line_or_be_endless() {
        assert_eq!(printable("\x1b[2Jone\r\nERROR two\u{85} "), "[2JoneERROR two");
        assert_eq!(printable(&"€".repeat(70_000)).chars().count(), LEN_MAX);
    }
}
