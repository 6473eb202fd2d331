//! A disk that fails when it is told to, in test builds only. What the real one does wrong cannot be ordered.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::disk::{Disk, RealDisk, Space};

/// Real, but for the change that a file names: `once ERRNO N` lets the Nth from now on fail, `from ERRNO N` all from that
/// one on. Whatever else is in the file counts as a healthy disk. The changes are counted anew when the text changes.
#[derive(Debug)]
pub struct ToldDisk {
    orders: PathBuf,
    state: Mutex<(String, u64)>,
}

impl ToldDisk {
    /// Told by this file, which need not be there.
    #[must_use]
    pub fn new(orders: PathBuf) -> Self {
        Self {
            orders,
            state: Mutex::default(),
        }
    }

    /// One more change.
    fn change(&self) -> io::Result<()> {
        let told = std::fs::read_to_string(&self.orders).unwrap_or_default();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.0 != told {
            *state = (told, 0);
        }
        let nth = state.1;
        state.1 = nth.saturating_add(1);
        let mut words = state.0.split_whitespace();
        let (how, errno, at) = (words.next(), number(words.next()), number(words.next()));
        match (how, errno, at) {
            (Some("once"), Some(errno), Some(at)) if i64::try_from(nth) == Ok(i64::from(at)) => {
                Err(io::Error::from_raw_os_error(errno))
            }
            (Some("from"), Some(errno), Some(at)) if i64::try_from(nth).is_ok_and(|n| n >= i64::from(at)) => {
                Err(io::Error::from_raw_os_error(errno))
            }
            _ => Ok(()),
        }
    }
}

fn number(word: Option<&str>) -> Option<i32> {
    word?.parse().ok()
}

impl Disk for ToldDisk {
    fn create(&self, path: &Path) -> io::Result<File> {
        self.change()?;
        RealDisk.create(path)
    }

    fn write(&self, file: &File, data: &[u8]) -> io::Result<()> {
        if let Err(e) = self.change() {
            // A disk that fails has often written a part.
            let (part, _) = data.split_at(data.len() / 2);
            RealDisk.write(file, part)?;
            return Err(e);
        }
        RealDisk.write(file, data)
    }

    fn read_at(&self, file: &File, data: &mut [u8], offset: u64) -> io::Result<()> {
        RealDisk.read_at(file, data, offset)
    }

    fn punch(&self, file: &File, offset: u64, len: u64) -> io::Result<()> {
        RealDisk.punch(file, offset, len)
    }

    fn next_data(&self, file: &File, offset: u64) -> io::Result<Option<(u64, u64)>> {
        RealDisk.next_data(file, offset)
    }

    fn write_back(&self, file: &File, offset: u64, len: u64) -> io::Result<()> {
        self.change()?;
        RealDisk.write_back(file, offset, len)
    }

    fn start_write_back(&self, file: &File, offset: u64, len: u64) -> io::Result<()> {
        // No step of its own: it changes nothing, and how often it is called is chance.
        RealDisk.start_write_back(file, offset, len)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        self.change()?;
        RealDisk.sync(file)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.change()?;
        RealDisk.sync_dir(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.change()?;
        RealDisk.rename(from, to)
    }

    fn make_dir(&self, path: &Path) -> io::Result<()> {
        self.change()?;
        RealDisk.make_dir(path)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.change()?;
        RealDisk.remove_file(path)
    }

    fn remove_tree(&self, path: &Path) -> io::Result<()> {
        self.change()?;
        RealDisk.remove_tree(path)
    }

    fn space(&self, path: &Path) -> io::Result<Space> {
        RealDisk.space(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fails_as_it_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let orders = dir.path().join("orders");
        let disk = ToldDisk::new(orders.clone());
        let create = |name: &str| {
            disk.create(&dir.path().join(name))
                .map(drop)
                .map_err(|e| e.raw_os_error())
        };
        assert_eq!(create("a"), Ok(()), "nothing was said");
        std::fs::write(&orders, "once 5 1").unwrap();
        assert_eq!(
            [create("b"), create("c"), create("d")],
            [Ok(()), Err(Some(5)), Ok(())]
        );
        std::fs::write(&orders, "from 28 1").unwrap();
        assert_eq!(
            [create("e"), create("f"), create("g")],
            [Ok(()), Err(Some(28)), Err(Some(28))]
        );
        std::fs::write(&orders, "healthy").unwrap();
        assert_eq!(create("h"), Ok(()));
    }
}
