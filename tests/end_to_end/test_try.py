def test_try(program, base_recipe, write_recipe, fp32, tmp_path):
    import time
    r = base_recipe()
    f = write_recipe(r)
    for ranks in (1, 2):
        t = time.time()
        e = program.run("--recipe", f, "--ds_config", fp32, "--run-dir", tmp_path/str(ranks), ranks=ranks)
        print(ranks, time.time()-t, e.code); print(e.out); print(e.err)
    r["logging"]["wandb"]["mode"] = "offline"
    t = time.time()
    e = program.run("--recipe", write_recipe(r), "--run-dir", tmp_path/"3", ranks=2)
    print(time.time()-t, e.code, e.said)
    assert 0
