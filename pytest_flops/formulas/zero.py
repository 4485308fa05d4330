"""Ops that are zero by kind: they make, move, select or name data, but compute nothing with it."""

from __future__ import annotations

from pytest_flops.formulas.registry import no_flops, register_flop_formula

ZERO_BY_KIND = {
    "copies and casts": """
        clone _to_copy copy copy_ _copy_from _copy_from_and_resize _foreach_copy _foreach_clone lift
        lift_fresh lift_fresh_copy _lazy_clone alias_copy detach_copy contiguous to type_as _pin_memory
        _to_dense _to_sparse _conj_copy _conj_physical conj_physical resolve_conj resolve_neg _neg_view_copy
        view_as_real_copy view_as_complex_copy complex narrow_copy _fw_primal_copy _make_dual_copy
        shallow_copy_data_ to_mkldnn
    """,
    "layout": """
        _unsafe_view _reshape_alias reshape expand_copy permute_copy transpose_copy t_copy view_copy
        slice_copy select_copy squeeze_copy unsqueeze_copy split_copy split_with_sizes_copy unbind_copy
        unfold_copy as_strided_copy diagonal_copy _reshape_copy _reshape_alias_copy cat concat concatenate
        stack _stack hstack vstack dstack column_stack row_stack repeat tile repeat_interleave flip fliplr
        flipud roll rot90 channel_shuffle native_channel_shuffle pixel_shuffle pixel_unshuffle unsafe_split
        unsafe_split_with_sizes unsafe_chunk block_diag meshgrid _chunk_cat constant_pad_nd pad
        reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d
        replication_pad3d _pad_enum _pad_circular _pack_padded_sequence to_padded_tensor im2col tril triu
        diag_embed diag diagflat resize_ resize_as_ resize as_strided_ squeeze_ unsqueeze_ t_ transpose_
        swapaxes_ swapdims_ detach_ set_ set _resize_output _resize_output_ mkldnn_reorder_conv2d_weight
        mkldnn_reorder_conv3d_weight _mkldnn_reshape _mkldnn_transpose _mkldnn_transpose_
        _cudnn_rnn_flatten_weight
    """,
    "nested and jagged tensors, their layout and lengths": """
        _nested_from_padded _nested_from_padded_and_nested_example _nested_from_padded_tensor
        _nested_tensor_from_mask _nested_tensor_from_tensor_list _nested_tensor_size _nested_tensor_strides
        _nested_tensor_storage_offsets _nested_tensor_from_mask_left_aligned _nested_view_from_buffer_copy
        _nested_view_from_jagged_copy _nested_compute_contiguous_strides_offsets _nested_get_values_copy
        _nested_get_jagged_dummy _nested_get_lengths _nested_get_offsets _nested_get_ragged_idx
        _nested_get_max_seqlen _nested_get_min_seqlen _nested_select_backward _nested_sum_backward
        _jagged_to_padded_dense_forward _padded_dense_to_jagged_forward
    """,
    "creation": """
        empty empty_like empty_strided empty_permuted new_empty new_empty_strided zeros zeros_like new_zeros
        _efficientzerotensor ones ones_like new_ones full full_like new_full fill fill_ zero zero_
        _foreach_zero scalar_tensor arange range linspace logspace eye tril_indices triu_indices one_hot
        bartlett_window blackman_window hamming_window hann_window kaiser_window fft_fftfreq fft_rfftfreq
        fill_diagonal_ _new_zeros_with_same_feature_meta from_file
    """,
    "random numbers": """
        rand rand_like randn randn_like randint randint_like randperm bernoulli bernoulli_ normal normal_
        normal_functional uniform uniform_ random random_ exponential exponential_ cauchy cauchy_ geometric
        geometric_ log_normal log_normal_ poisson binomial multinomial _standard_gamma _sample_dirichlet
        _philox_normal _philox_uniform _philox_key_fold_in _philox_key_split _cudnn_init_dropout_state
        _fill_mem_eff_dropout_mask_
    """,
    "lookup and selection": """
        index _unsafe_index _unsafe_masked_index index_select gather take embedding select index_fill
        index_fill_ index_copy masked_fill masked_scatter masked_select where nonzero nonzero_static
        nonzero_numpy argwhere scatter.src scatter.value lu_unpack slice_scatter select_scatter
        diagonal_scatter as_strided_scatter select_backward slice_backward diagonal_backward max_unpool2d
        max_unpool3d masked_scatter_backward
    """,
    "questions about the tensor": """
        item _local_scalar_dense is_nonzero is_same_size is_pinned is_coalesced sym_size sym_stride
        sym_numel size stride dim numel storage_offset is_contiguous result_type can_cast promote_types
        _assert_async _assert_scalar _assert_tensor_metadata _functional_assert_async
        _functional_assert_scalar sym_constrain_range sym_constrain_range_for_size record_stream
        _fused_sdp_choice _linalg_check_errors _nnz _has_same_storage_numel _use_cudnn_ctc_loss
        _use_miopen_ctc_loss is_set_to
        _functional_sym_constrain_range _functional_sym_constrain_range_for_size _make_dep_token
    """,
}
"""The zero-by-kind ops of ATen, by the reason. Views need no entry: torch knows them (`is_view`)."""

register_flop_formula(
    [
        "profiler::_record_function_enter",
        "profiler::_record_function_enter_new",
        "profiler::_record_function_exit",
    ]
)(no_flops)

for _names in ZERO_BY_KIND.values():
    register_flop_formula([f"aten::{name}" for name in _names.split()])(no_flops)
