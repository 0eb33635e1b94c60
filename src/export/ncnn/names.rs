//! Names that ncnn can read: without white space, at most 255 bytes, and each once.

use std::collections::HashSet;

/// Longest name, with room for what is put behind it.
const LONGEST: usize = 200;

/// Names given so far.
#[derive(Debug, Default)]
pub(crate) struct Names(HashSet<String>);

impl Names {
    /// A name like `wanted`, made free.
    pub fn fresh(&mut self, wanted: &str) -> String {
        let base = readable(wanted);
        let mut name = base.clone();
        let mut number = 1;
        while !self.0.insert(name.clone()) {
            name = format!("{base}_{number}");
            number += 1;
        }
        name
    }
}

/// `name` without white space and without what marks the weights of a layer in a calibration table.
pub(crate) fn readable(name: &str) -> String {
    let mut text: String =
        name.chars().map(|c| if c.is_whitespace() || c.is_control() { '_' } else { c }).collect();
    let mut end = text.len().min(LONGEST);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    let text = text.replace("_param_", "_param.");
    if text.is_empty() { "_".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_readable_and_distinct() {
        let mut names = Names::default();
        for (wanted, given) in
            [("a b\tc", "a_b_c"), ("a_b_c", "a_b_c_1"), ("conv_param_0", "conv_param.0"), ("", "_")]
        {
            assert_eq!(names.fresh(wanted), given);
        }
        assert_eq!(names.fresh(&"é".repeat(300)).len(), 200);
    }
}
