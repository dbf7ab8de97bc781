"""Other answers to the exercises of notebook 06, right and wrong, on which its checks are tried."""

# %% 1 right: without Grad-CAM, as the last layer works it out: maps times weights, and the bias
last = network.layers[-1]
seen_there = explain.feature_maps(network, chests, ["look_relu"])["look_relu"]
signed = (seen_there @ last.kernel.numpy())[..., 0] / across**2
constant = float(last.bias.numpy()[0])

# %% 1 right: place by place, and the score from the probability; a constant for each image
maps = [explain.grad_cam(network, chests, classes=k, size=across).maps for k in range(2)]
signed = np.where(maps[1] > 0, maps[1], -maps[0]).tolist()
probability = models.predict(network, chests).astype(float)
constant = np.log(probability / (1 - probability)) - np.sum(signed, axis=(1, 2))

# %% 1 wrong: the map for COVID-19 alone
signed = explain.grad_cam(network, chests, classes=1, size=across).maps
constant = (explain.scores(network, chests)[:, 1] - signed.sum(axis=(1, 2))).mean()

# %% 1 wrong: maps as large as the image
signed = explain.grad_cam(network, chests, classes=1).maps - explain.grad_cam(network, chests, classes=0).maps
constant = (explain.scores(network, chests)[:, 1] - signed.sum(axis=(1, 2))).mean()

# %% 1 wrong: the mean of a map in place of its sum
signed = explain.grad_cam(network, chests, classes=1, size=across).maps
signed = signed - explain.grad_cam(network, chests, classes=0, size=across).maps
constant = (explain.scores(network, chests)[:, 1] - signed.mean(axis=(1, 2))).mean()


# %% 2 right: the network in two halves; the score before the sigmoid from the last layer's weights; normalised
def my_grad_cam(network, image, layer):
    names = [one.name for one in network.layers]
    maps = keras.Model(network.input, network.get_layer(layer).output)(image[None])
    with tf.GradientTape() as tape:
        tape.watch(maps)
        x = maps
        for one in network.layers[names.index(layer) + 1 : -1]:
            x = one(x)
        score = x @ network.layers[-1].kernel
    slopes = tape.gradient(score, maps).numpy().mean(axis=(0, 1, 2))
    heat = np.maximum(0, (maps.numpy()[0] * slopes).sum(axis=-1))
    return heat / max(heat.max(), 1e-12)


# %% 2 right: map by map, with the gradient of the probability, which differs in scale only
def my_grad_cam(network, image, layer):
    both = keras.Model(network.input, [network.get_layer(layer).output, network.output])
    with tf.GradientTape() as tape:
        maps, probability = both(tf.constant(image)[tf.newaxis])
    slopes = tape.gradient(probability, maps)[0]
    heat = np.zeros(maps.shape[1:3])
    for number in range(maps.shape[3]):
        heat += float(tf.reduce_mean(slopes[:, :, number])) * maps[0, :, :, number].numpy()
    heat[heat < 0] = 0
    return heat


# %% 2 wrong: nothing is cut off
def my_grad_cam(network, image, layer):
    both = keras.Model(network.input, [network.get_layer(layer).output, network.output])
    with tf.GradientTape() as tape:
        maps, probability = both(image[None])
    weights = tf.reduce_mean(tape.gradient(probability, maps), axis=(1, 2), keepdims=True)
    return tf.reduce_sum(weights * maps, axis=3)[0].numpy()


# %% 2 wrong: gradient times map, place by place: no weight for a map
def my_grad_cam(network, image, layer):
    both = keras.Model(network.input, [network.get_layer(layer).output, network.output])
    with tf.GradientTape() as tape:
        maps, probability = both(image[None])
    return tf.nn.relu(tf.reduce_sum(tape.gradient(probability, maps) * maps, axis=3))[0].numpy()


# %% 2 wrong: the mean of all maps, whatever they say for the class
def my_grad_cam(network, image, layer):
    return explain.feature_maps(network, image[None], [layer])[layer][0].mean(axis=-1)


# %% 3 right: a loop with a threshold; the rival is the middle of the image
def fall(maps):
    lost = []
    for image, heat, answer in zip(grey, maps, asked_for):
        painted = np.where((heat >= np.quantile(heat, 0.9))[..., None], image.mean(), image).astype(np.uint8)
        before, after = explain.scores(network, np.stack([image, painted]))[:, answer]
        lost.append(before - after)
    return lost


rows_of, columns_of = np.indices(grey.shape[1:3]) / len(grey[0]) - 0.5
rival = np.repeat(np.exp(-5 * (rows_of**2 + columns_of**2))[None], len(grey), axis=0)


# %% 3 right: all images at once, the score from the probability; the rival is the image's own edges
import cv2


def fall(maps):
    order = np.asarray(maps).reshape(len(grey), -1).argsort(axis=1)[:, ::-1]
    flat = grey.reshape(len(grey), -1).copy()
    mean_grey = flat.mean(axis=1, keepdims=True).round().astype("uint8")
    np.put_along_axis(flat, order[:, : flat.shape[1] // 10], mean_grey, axis=1)
    sign = 2 * asked_for - 1
    before, after = (models.predict(network, some_images) for some_images in (grey, flat.reshape(grey.shape)))
    return sign * (np.log(before / (1 - before)) - np.log(after / (1 - after)))


rival = np.stack([np.abs(cv2.Sobel(image, cv2.CV_32F, 1, 1)) for image in grey])


# %% 3 wrong: always the score of COVID-19
def fall(maps):
    painted = grey.copy()
    for image, heat in zip(painted, maps):
        image[heat >= np.quantile(heat, 0.9)] = image.mean()
    return explain.scores(network, grey)[:, 1] - explain.scores(network, painted)[:, 1]


# %% 3 wrong: the coldest tenth is painted over
def fall(maps):
    painted, each = grey.copy(), np.arange(len(grey))
    for image, heat in zip(painted, maps):
        image.reshape(-1)[np.argsort(heat, axis=None)[: heat.size // 10]] = image.mean()
    return (explain.scores(network, grey) - explain.scores(network, painted))[each, asked_for]


# %% 3 wrong: the probability in place of the score
def fall(maps):
    painted = grey.copy()
    for image, heat in zip(painted, maps):
        image[heat >= np.quantile(heat, 0.9)] = image.mean()
    lost = models.predict(network, grey) - models.predict(network, painted)
    return np.where(asked_for == 1, lost, -lost)


# %% 3 wrong: the rival has asked the network about the same image
def fall(maps):
    painted, each = grey.copy(), np.arange(len(grey))
    for image, heat in zip(painted, maps):
        image[heat >= np.quantile(heat, 0.9)] = image.mean()
    return (explain.scores(network, grey) - explain.scores(network, painted))[each, asked_for]


rival = whole["Grad-CAM"] ** 2
