//! Changing the resolution.

use super::super::net::Layer;
use super::convolution::feature_map;
use super::{Lowered, Lowering, Node};
use crate::graph::NodeExt;

/// `Resize` and `Upsample`: `Interp`.
pub(super) fn resize<'m>(lowering: &mut Lowering<'m>, node: &Node<'m>) -> Lowered {
    let x = feature_map(lowering, node)?;
    let output = lowering.dims(&node.proto.output[0])?;
    if x.rank() != 4 || output.len() != 4 || output[..2] != x.dims[..2] {
        return Err("it resizes something else than the height and width of feature maps".into());
    }
    let text = |attribute: &str, default: &str| {
        node.attribute(attribute).map_or(default.to_owned(), |a| String::from_utf8_lossy(a.s()).into_owned())
    };
    let mode = match text("mode", "nearest").as_str() {
        "nearest" => 1,
        "linear" | "bilinear" => 2,
        "cubic" => 3,
        other => return Err(format!("its mode is {other}").into()),
    };
    let old = node.is("Upsample") || lowering.opset < 11;
    let coordinates =
        if old { "asymmetric".to_owned() } else { text("coordinate_transformation_mode", "half_pixel") };
    let nearest = if old { "floor".to_owned() } else { text("nearest_mode", "round_prefer_floor") };
    let grows = [2, 3].iter().all(|&axis| output[axis].is_multiple_of(x.dims[axis]));
    let same = output == x.dims;
    let possible = match (mode, coordinates.as_str()) {
        _ if same => true,
        // Halfway between pixels both ways of rounding meet, for a whole number of times.
        (1, "half_pixel" | "pytorch_half_pixel") => grows,
        (1, "asymmetric") => {
            nearest == "floor"
                || grows
                    && nearest == "round_prefer_floor"
                    && output[2] == 2 * x.dims[2]
                    && output[3] == 2 * x.dims[3]
        }
        (2 | 3, "half_pixel" | "pytorch_half_pixel" | "align_corners") => true,
        _ => false,
    };
    if !possible {
        return Err(format!("its coordinates are {coordinates}, rounded {nearest}").into());
    }
    if mode == 3 && (node.float("cubic_coeff_a", -0.75) != -0.75 || node.int("exclude_outside", 0) != 0) {
        return Err("its cubic is another than that with a = -0.75".into());
    }
    let layer = Layer::new("Interp").int(0, mode).int(3, output[2]).int(4, output[3]);
    let layer = layer.int(6, i32::from(coordinates == "align_corners"));
    let y = lowering.output(node, 0, Some(0))?;
    lowering.add(node, layer, &[&x], &[&y]);
    Ok(())
}

/// `DepthToSpace`.
pub(super) fn depth_to_space<'m>(lowering: &mut Lowering<'m>, node: &Node<'m>) -> Lowered {
    let x = feature_map(lowering, node)?;
    let across = node.attribute("mode").is_none_or(|a| a.s() == b"DCR".as_slice());
    let layer = Layer::new("PixelShuffle").int(0, node.int("blocksize", 1)).int(1, i32::from(across));
    let y = lowering.output(node, 0, Some(0))?;
    lowering.add(node, layer, &[&x], &[&y]);
    Ok(())
}

/// `SpaceToDepth`.
pub(super) fn space_to_depth<'m>(lowering: &mut Lowering<'m>, node: &Node<'m>) -> Lowered {
    let x = feature_map(lowering, node)?;
    let y = lowering.output(node, 0, Some(0))?;
    lowering.add(node, Layer::new("Reorg").int(0, node.int("blocksize", 1)).int(1, 1), &[&x], &[&y]);
    Ok(())
}

/// `GridSample`, bilinear with zeros outside.
pub(super) fn grid_sample<'m>(lowering: &mut Lowering<'m>, node: &Node<'m>) -> Lowered {
    let is =
        |attribute: &str, usual: &[&[u8]]| node.attribute(attribute).is_none_or(|a| usual.contains(&a.s()));
    if !is("mode", &[b"linear", b"bilinear"]) || !is("padding_mode", &[b"zeros"]) {
        return Err("it is not bilinear with zeros outside".into());
    }
    let (x, grid) = (feature_map(lowering, node)?, lowering.input(node, 1)?);
    let layer = Layer::new("GridSample").int(0, 1).int(1, 1).int(2, node.int("align_corners", 0));
    let y = lowering.output(node, 0, Some(0))?;
    lowering.add(node, layer, &[&x, &grid], &[&y]);
    Ok(())
}
