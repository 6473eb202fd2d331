//! Lists and names that are no longer than they may be, also when they are read from a file.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Visitor};

/// The kernel's limit on the name of an interface, in bytes.
const MAX_NAME: usize = 15;

/// A list of at most `MOST` items.
pub(super) fn list<'de, D, T, const MOST: usize>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    struct Bounded<T, const MOST: usize>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>, const MOST: usize> Visitor<'de> for Bounded<T, MOST> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "at most {MOST} items")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
            let mut list = Vec::new();
            while let Some(item) = items.next_element()? {
                if list.len() >= MOST {
                    return Err(A::Error::invalid_length(MOST + 1, &self));
                }
                list.push(item);
            }
            Ok(list)
        }
    }

    deserializer.deserialize_seq(Bounded::<T, MOST>(PhantomData))
}

/// The name of an interface.
pub(super) fn name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let name = String::deserialize(deserializer)?;
    let is_name = |name: &str| {
        !matches!(name, "" | "." | "..")
            && name.len() <= MAX_NAME
            && !name.contains(|c: char| c == '/' || c == ':' || c == '\0' || c.is_whitespace())
    };
    if is_name(&name) {
        Ok(name)
    } else {
        Err(D::Error::custom("not the name of an interface"))
    }
}
