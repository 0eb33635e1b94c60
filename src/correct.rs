//! Making up for what rounding the weights does to the results of a layer, from a few of its inputs.
//!
//! * [`inputs`]: means and second moments of what each layer multiplies, gathered while the float model runs.
//! * [`rounding`]: integers that keep the layer's results, not its weights.
//! * [`layer`]: both, for one layer.
//! * [`float`]: for other runtimes, both in the float model that their files are made from.
//!
//! The bias then takes up the mean of the error that is left: with y = W x + b and the rounded weights Ŵ it becomes
//! b − (Ŵ − W) E\[x\] (Nagel et al. 2019, section 4.2, with means of real inputs in place of BatchNormalization's).

mod float;
pub mod inputs;
pub(crate) mod layer;
mod rounding;
mod windows;

pub(crate) use float::in_float;
pub use inputs::LayerInputs;
use layer::Effect;

/// What the corrections did, for the user; `None` if there were none.
pub(crate) fn note(effects: impl Iterator<Item = Effect>) -> Option<String> {
    let effects: Vec<Effect> = effects.collect();
    let corrected = effects.iter().filter(|e| e.before > 0.0).count();
    if corrected > 0 && effects.iter().all(|e| e.after == 0.0) {
        return Some(format!("corrections: the biases of {corrected} layers take up the mean error"));
    }
    let mut gains: Vec<f64> = effects.iter().filter(|e| e.after > 0.0).map(Effect::gain_db).collect();
    gains.sort_unstable_by(f64::total_cmp);
    let (layers, median) = (gains.len(), gains.get(gains.len() / 2)?);
    Some(format!(
        "corrections: the weights of {layers} layers put less noise into their results, by {median:.1} dB in \
         the median"
    ))
}

/// The same for one layer.
pub(crate) fn remarks(effect: &Effect) -> Vec<String> {
    let gain = effect.gain_db();
    let rounding = effect.what.rounding && effect.before > 0.0 && effect.after > 0.0;
    let rounded =
        rounding.then(|| format!("weights rounded for its results: {gain:.1} dB less noise in them"));
    let bias = effect.what.bias.then(|| "bias takes up the mean error".to_owned());
    rounded.into_iter().chain(bias).collect()
}

/// What to correct.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Corrections {
    /// Weights rounded for the sake of the layer's results.
    pub rounding: bool,
    /// The mean error taken up by the bias.
    pub bias: bool,
}
