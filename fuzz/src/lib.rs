//! What has to hold for any bytes at all.

use std::collections::HashSet;
use std::fs;

use rustq::Model;
use rustq::calibration::Calibration;
use rustq::fold::fold as fold_model;
use rustq::graph::Graph;
use rustq::model::ExternalData;
use rustq::qparams::Scheme;
use rustq::quantize::{WeightGrid, quantize_dynamic};
use rustq::ranges::{Method, range};

/// A model that can be read can be written, and is the same again.
pub fn model(data: &[u8]) {
    let Ok(model) = Model::from_bytes(data.to_vec()) else { return };
    let bytes = model.to_bytes().expect("no larger than 2 GiB");
    let again = Model::from_bytes(bytes.clone()).expect("what was written can be read");
    assert_eq!(again.undeclared_bytes(), 0);
    assert_eq!(again.to_bytes().expect("as before"), bytes);
}

/// A model is folded and quantized, or refused; the result is a model.
pub fn fold(data: &[u8]) {
    let Ok(model) = Model::from_bytes(data.to_vec()) else { return };
    let Ok((folded, _)) = fold_model(&model) else { return };
    self::model(&folded.to_bytes().expect("no larger than 2 GiB"));
    let _ = Graph::new(folded.graph()).check_weights(&Default::default());
    for pairs in [false, true] {
        let grid = WeightGrid { pairs, ..WeightGrid::PLAIN };
        let Ok(quantized) = quantize_dynamic(&folded, grid, &HashSet::new()) else { continue };
        self::model(&quantized.model.to_bytes().expect("no larger than 2 GiB"));
    }
}

/// A calibration that can be read can be written and asked.
pub fn calibration(data: &[u8]) {
    let Ok(calibration) = Calibration::from_bytes(data) else { return };
    let again = Calibration::from_bytes(&calibration.to_bytes()).expect("what was written can be read");
    assert!(again == calibration);
    for (_, observer) in calibration.tensors() {
        for method in [Method::MinMax, Method::Percentile(99.9), Method::Mse] {
            for scheme in [Scheme::Asymmetric, Scheme::Symmetric] {
                let found = range(observer, method, scheme);
                assert!(found.min <= 0.0 && found.max >= 0.0, "{found:?}");
            }
        }
    }
}

/// A model beside a file of 100 bytes: its tensors are in there, or it is refused. Saved and opened, it is the same.
pub fn external(data: &[u8]) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("m.onnx");
    fs::write(&path, data).expect("a file");
    fs::write(folder.path().join("w.bin"), [7; 100]).expect("a file");
    let Ok(model) = Model::open(&path) else { return };
    let copy = folder.path().join("copy.onnx");
    model.save(&copy, ExternalData::Always).expect("the disk is not full");
    let again = Model::open(&copy).expect("what was written can be read");
    assert_eq!(again.to_bytes().expect("small"), model.to_bytes().expect("small"));
}
