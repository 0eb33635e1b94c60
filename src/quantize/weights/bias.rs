//! Bias: int32 with the scale s_x · s_w\[c\] and zero point 0, so that the kernel adds it to its int32 sums as it is
//! (Jacob et al. 2018, equation 11).

use super::channels::Channels;
use super::operand::{channel_axis, weight_of};
use crate::error::Result;
use crate::graph::{Graph, NodeId};
use crate::qparams::QuantParams;
use crate::quantize::pairs::Pairs;
use crate::tensor::{Parts, shape};

/// Largest magnitude a bias may have as an integer: half of the int32 range, so that the sums it is added to keep the
/// other half.
pub(crate) const BIAS_LIMIT: f64 = (1_i64 << 30) as f64;

/// Integer magnitude that the bias of a channel without weights is given.
const DEAD_CHANNEL_BIAS: f64 = (1_i64 << 24) as f64;

/// Whether a bias fits into int32 on the grid of the sums of channels that have other weights than 0.
///
/// # Errors
/// [`crate::Error::Tensor`] when weights cannot be read.
pub(crate) fn bias_fits(
    graph: &Graph,
    id: NodeId,
    params: &QuantParams,
    (bias, input_scale): (&[f32], f32),
) -> Result<bool> {
    let (weight, axis) = (weight_of(graph, id)?, channel_axis(graph, id));
    let sizes = Channels::new(&shape(weight)?, axis).extent(&Parts::of(weight)?, &Pairs::None).limits;
    let mut channels = bias.iter().zip(params.scale.iter().cycle()).zip(sizes);
    Ok(channels
        .all(|((b, &scale), size)| size == 0.0 && params.axis.is_some() || has_room(*b, input_scale, scale)))
}

fn has_room(bias: f32, input_scale: f32, scale: f32) -> bool {
    f64::from(bias.abs()) <= BIAS_LIMIT * f64::from(input_scale) * f64::from(scale)
}

/// The scales of channels that have nothing but a bias, as large as that needs them.
pub(super) fn with_room_in_dead_channels(
    mut params: QuantParams,
    sizes: &[f32],
    bias: Option<(&[f32], f32)>,
) -> QuantParams {
    for (channel, scale) in params.scale.iter_mut().enumerate() {
        let b = bias.and_then(|(bias, input_scale)| Some((*bias.get(channel)?, input_scale)));
        let fits = *scale > 0.0 && b.is_none_or(|(b, input_scale)| has_room(b, input_scale, *scale));
        if fits || params.axis.is_some() && sizes.get(channel).is_some_and(|&size| size > 0.0) {
            continue;
        }
        let mut limit = [0.0];
        if let Some((b, input_scale)) = b {
            leave_room_for_bias(&mut limit, &[b], input_scale);
        }
        *scale = QuantParams::per_channel(&limit, 0).scale[0];
    }
    params
}

/// Rounds a bias to the grid s_x · s_w\[c\]; returns the integers and that scale.
pub(super) fn quantize_bias(bias: &[f32], input_scale: f32, weights: &QuantParams) -> (Vec<i32>, Vec<f32>) {
    let scales = weights.scale.iter().cycle().take(bias.len());
    let scale: Vec<f32> = scales.map(|&s| input_scale * s).collect();
    let round = |(&b, &s): (&f32, &f32)| (f64::from(b) / f64::from(s)).round_ties_even() as i32;
    (bias.iter().zip(&scale).map(round).collect(), scale)
}

/// Raises the limit of a channel whose bias would not fit into int32, or which has nothing but a bias.
pub(super) fn leave_room_for_bias(limits: &mut [f32], bias: &[f32], input_scale: f32) {
    let least = |&b: &f32, limit: f64| (127.0 * f64::from(b.abs()) / (f64::from(input_scale) * limit)) as f32;
    for (m, b) in limits.iter_mut().zip(bias) {
        *m = m.max(least(b, if *m == 0.0 { DEAD_CHANNEL_BIAS } else { BIAS_LIMIT }));
    }
}
