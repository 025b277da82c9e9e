//! Blender renders a frame of a scene whose texture is a file of its own.

use tests::tools;

use super::places::{Files, Places, tree};

/// Makes the scene: a lit, textured cube, the texture beside it.
const SCENE: &str = "import bpy, random, sys
random.seed(11)
folder = sys.argv[-1]
image = bpy.data.images.new('texture', 256, 256)
image.pixels = [random.random() for _ in range(256 * 256 * 4)]
image.filepath_raw = folder + '/textures/noise.png'
image.file_format = 'PNG'
image.save()
image.source = 'FILE'
image.filepath = '//textures/noise.png'
material = bpy.data.materials.new('textured')
material.use_nodes = True
node = material.node_tree.nodes.new('ShaderNodeTexImage')
node.image = image
shader = material.node_tree.nodes['Principled BSDF']
material.node_tree.links.new(node.outputs['Color'], shader.inputs['Base Color'])
bpy.data.objects['Cube'].data.materials.clear()
bpy.data.objects['Cube'].data.materials.append(material)
scene = bpy.context.scene
scene.render.engine = 'CYCLES'
scene.cycles.device = 'CPU'
scene.cycles.samples = 8
scene.cycles.use_denoising = False
scene.cycles.seed = 3
scene.render.threads_mode = 'FIXED'
scene.render.threads = 1
scene.render.resolution_x, scene.render.resolution_y, scene.render.resolution_percentage = 240, 160, 100
scene.render.image_settings.file_format = 'BMP'
bpy.ops.wm.save_as_mainfile(filepath=folder + '/scene.blend')
";

#[test]
#[ignore = "soak: run by `make soak`"]
fn soak_blender_renders_the_same_frame() {
    let blender = tools::system("blender", "blender");
    let making = tempfile::tempdir().unwrap();
    let script = making.path().join("make.py");
    std::fs::write(&script, SCENE).unwrap();
    let mut make = tools::limited(300, &blender);
    make.args(["-b", "--factory-startup", "--python-exit-code", "1", "--python"]).arg(&script).arg("--");
    let folder = making.path().join("scene");
    std::fs::create_dir_all(folder.join("textures")).unwrap();
    tools::done(make.arg(&folder));
    let files: Files = tree(&folder).into_iter().filter(|(name, _)| !name.ends_with(".blend1")).collect();
    assert!(files.contains_key("scene.blend") && files.contains_key("textures/noise.png"), "{:?}", files.keys());

    let places = Places::with(&files);
    let render =
        "blender -b --factory-startup \"$IN/scene.blend\" -o \"$PWD/frame-###\" -f 1 > log 2>&1 || { cat log; exit 1; }
        if grep -i -E 'warning|error|unable' log; then exit 1; fi
        rm log";
    let (_, made) = places.same("render", &[], render);
    let (_, frame) = made.iter().next().unwrap();
    let colours: std::collections::BTreeSet<&[u8]> = frame[54..].chunks(3).collect();
    assert!(made.len() == 1 && colours.len() > 500, "not much of a frame: {} colours", colours.len());
    places.end();
}
