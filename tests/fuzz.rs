//! What has to hold for any bytes at all, for a few thousand mutants of the seeds: `make fuzz` tries more, and knows
//! which of them reach new code.

#[path = "../fuzz/src/lib.rs"]
mod targets;

use std::fs;
use std::path::Path;

/// xorshift64 (Marsaglia 2003).
struct Draw(u64);

impl Draw {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % bound.max(1)
    }

    fn mutate(&mut self, content: &mut Vec<u8>) {
        const WRONG: &[&[u8]] = &[
            &[0],
            &[0x7f],
            &[0xff; 5],
            &[0x80, 0x80, 0x80, 0x80, 0x10],
            &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1],
        ];
        let at = self.below(content.len());
        let end = content.len().min(at + 1 + self.below(8));
        match self.below(4) {
            0 if at < content.len() => content[at] = self.below(256) as u8,
            1 => drop(content.splice(at..end, WRONG[self.below(WRONG.len())].iter().copied())),
            2 => drop(content.drain(at..end)),
            _ => content.extend_from_within(at..end),
        }
    }
}

fn try_mutants(seeds: &str, count: usize, target: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(seeds);
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let mut draw = Draw(0x9e37_79b9_7f4a_7c15);
    for file in files {
        let content = fs::read(&file).unwrap();
        target(&content);
        for _ in 0..count {
            let mut mutant = content.clone();
            (0..=draw.below(4)).for_each(|_| draw.mutate(&mut mutant));
            target(&mutant);
        }
    }
}

#[test]
fn models_are_read_and_written() {
    try_mutants("model", 300, targets::model);
}

#[test]
fn models_are_folded_and_quantized() {
    try_mutants("model", 100, targets::fold);
}

#[test]
fn external_data_are_found_or_refused() {
    try_mutants("model", 30, targets::external);
}

#[test]
fn calibrations_are_read_and_written() {
    try_mutants("calibration", 1000, targets::calibration);
}
