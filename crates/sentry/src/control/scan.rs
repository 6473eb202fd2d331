//! Finds the end of a JSON object in a stream of bytes.

/// Counts brackets, outside of strings, as the bytes come in. Whether it is JSON is for the parser to say.
#[derive(Debug, Default)]
pub(super) struct ObjectEnd {
    depth: u32,
    in_string: bool,
    escaped: bool,
    seen: usize,
}

/// What a scan found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Scan {
    /// The object goes on.
    More,
    /// The object ends before this offset from its first byte.
    End(usize),
    /// It cannot be an object.
    NoObject,
}

impl ObjectEnd {
    /// Goes on with the next bytes of the stream.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Scan {
        for &byte in bytes {
            if self.seen == 0 && byte != b'{' {
                return Scan::NoObject;
            }
            self.seen += 1;
            if self.escaped {
                self.escaped = false;
            } else if self.in_string {
                match byte {
                    b'\\' => self.escaped = true,
                    b'"' => self.in_string = false,
                    _ => {}
                }
            } else {
                match byte {
                    b'"' => self.in_string = true,
                    b'{' | b'[' => self.depth = self.depth.saturating_add(1),
                    b'}' | b']' => {
                        self.depth = self.depth.saturating_sub(1);
                        if self.depth == 0 {
                            return Scan::End(self.seen);
                        }
                    }
                    _ => {}
                }
            }
        }
        Scan::More
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ends_where_the_object_ends() {
        let text = br#"{"a":"}\"{","b":[{}]} tail"#;
        assert_eq!(ObjectEnd::default().feed(text), Scan::End(21));
        assert_eq!(ObjectEnd::default().feed(b"[]"), Scan::NoObject);
        assert_eq!(ObjectEnd::default().feed(b""), Scan::More);
        assert_eq!(ObjectEnd::default().feed(b"{{{"), Scan::More);
    }

    proptest! {
        #[test]
        fn finds_every_serialized_object_in_any_slices(
            pairs in proptest::collection::btree_map("\\PC{0,12}", "\\PC{0,12}", 0..6),
            cut in 1_usize..9,
            tail in "\\PC{0,9}",
        ) {
            let text = serde_json::to_string(&pairs).unwrap();
            let all = format!("{text}{tail}");
            let mut scan = ObjectEnd::default();
            let mut end = None;
            for chunk in all.as_bytes().chunks(cut) {
                if let Scan::End(n) = scan.feed(chunk) { end = Some(n); break; }
            }
            prop_assert_eq!(end, Some(text.len()));
        }
    }
}
