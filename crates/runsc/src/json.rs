//! JSON as Go's encoder writes it.

use serde::Serialize;

/// Pretty, with two spaces, a line end, and the characters escaped that Go escapes for HTML.
pub(crate) fn go_pretty<T: Serialize>(value: &T) -> Result<String, serde_json::Error> {
    serde_json::to_string_pretty(value).map(|text| escape(&text) + "\n")
}

/// On one line, with a line end.
pub(crate) fn go_line<T: Serialize>(value: &T) -> Result<String, serde_json::Error> {
    serde_json::to_string(value).map(|text| escape(&text) + "\n")
}

/// None of these occurs in JSON outside of strings.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                let code = u32::from(c);
                out.push_str(&format!("\\u{code:04x}"));
            }
            c => out.push(c),
        }
    }
    out
}
