//! Names for an imported graph: what a file says, made fit to stand in a graph and given out once, or to
//! stand in a report.

use std::collections::{HashMap, HashSet};
use std::fmt::{self, Write as _};

use requant_model::limits;

/// The names given out so far.
#[derive(Debug)]
pub(crate) struct Names {
    taken: HashSet<String>,
    counts: HashMap<String, u64>,
}

impl Names {
    /// `reserved` names are given out to nobody.
    pub(crate) fn new(reserved: impl Iterator<Item = String>) -> Self {
        Names {
            taken: reserved.collect(),
            counts: HashMap::new(),
        }
    }

    /// A name that was not given out yet, made from `base`.
    pub(crate) fn unique(&mut self, base: &str) -> String {
        let base = clean(base);
        if self.taken.insert(base.clone()) {
            return base;
        }
        // Counted on from the last name of this base, so that many alike stay cheap.
        let mut count = self.counts.get(&base).copied().unwrap_or(1);
        loop {
            count += 1;
            let name = format!("{base}.{count}");
            if self.taken.insert(name.clone()) {
                self.counts.insert(base, count);
                return name;
            }
        }
    }
}

/// A name that may stand in a graph.
pub(crate) fn clean(name: &str) -> String {
    // Room for suffixes below the limit on names.
    const LONGEST: usize = limits::MAX_NAME - 128;
    let mut out = String::new();
    for c in name.chars() {
        if out.len() + c.len_utf8() > LONGEST {
            break;
        }
        out.push(if c.is_control() { '_' } else { c });
    }
    if out.is_empty() {
        "unnamed".to_owned()
    } else {
        out
    }
}

/// A text of a file as reports show it: whatever could act on a terminal or split a line of a log is
/// written as an escape, and only the beginning of what is long is shown.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shown<'a>(&'a str);

/// See [`Shown`].
pub(crate) fn shown(text: &str) -> Shown<'_> {
    Shown(text)
}

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, c) in self.0.chars().enumerate() {
            if index == limits::MAX_NAME {
                return f.write_char('…');
            }
            match c {
                '\'' | '"' | '\\' => f.write_char(c)?,
                c => write!(f, "{}", c.escape_debug())?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shown_names_cannot_act() {
        for (name, want) in [
            ("layer/conv.1", "layer/conv.1"),
            ("größe 'a' \\ \"b\"", "größe 'a' \\ \"b\""),
            ("x\n\x1b[31mERROR\r\t\0", "x\\n\\u{1b}[31mERROR\\r\\t\\0"),
            ("a\u{202e}b\u{2028}c", "a\\u{202e}b\\u{2028}c"),
        ] {
            assert_eq!(shown(name).to_string(), want);
        }
        let long = shown(&"é".repeat(5000)).to_string();
        assert_eq!(long.chars().count(), limits::MAX_NAME + 1);
        assert!(long.ends_with("é…"));
    }
}
