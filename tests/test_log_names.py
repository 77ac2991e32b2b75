"""Which loss terms of a log belong to the last decoder layer."""

from detr_jax.log_names import last_layer_terms, split_term


def test_terms_of_other_predictions_belong_to_the_term_of_the_last_layer():
    names = ["loss", "loss_giou", "loss_giou_0", "loss_giou_11", "loss_giou_enc", "loss_giou_dn", "loss_giou_dn_3"]
    assert [split_term(name, names) for name in names] == [
        ("loss", ""),
        ("loss_giou", ""),
        ("loss_giou", "0"),
        ("loss_giou", "11"),
        ("loss_giou", "enc"),
        ("loss_giou", "dn"),
        ("loss_giou", "dn_3"),
    ]
    assert last_layer_terms(names) == ["loss_giou"]


def test_a_term_whose_own_name_ends_in_a_number_is_a_term():
    names = ["loss_top_5", "loss_top_5_0", "loss_smooth", "loss_smooth_l1", "class_error"]
    assert last_layer_terms(names) == ["loss_top_5", "loss_smooth", "loss_smooth_l1"]
    assert split_term("loss_top_5_0", names) == ("loss_top_5", "0")
