"""Options of small models with local relations: an LR-Net with batch norms, and a Swin."""

RELATION = (
    "model.attention=local_relation",
    "model.position_bias=table",
    "model.local_relation.kernel_size=3",
    "model.local_relation.share=4",
    "model.local_relation.prior_hidden=4",
)
MODELS = {
    "lr_net": (
        *RELATION,
        "model.moe=null",
        "model.drop_rate=0.0",
        "model.mlp_fc2_bias=true",
        "model.embed_dim=16",
        "model.image_size=32",
        "model.lr_net.width=8",
        "model.lr_net.stem_width=8",
        "model.lr_net.norm_group_images=4",
    ),
    "swin": (*RELATION, "model.image_size=32"),
}
